"""One run of a comparison."""

import pytest

from ipu_proxynorm.config import load
from ipu_proxynorm.training.trial import train_trial


def test_a_run_that_diverges_has_no_loss_and_ends_no_comparison(tmp_path):
    config = load(
        "configs/quickstart.yaml",
        [
            f"runs={tmp_path}",
            "model.width=4",
            "model.norm=none",
            "ipu.splits=[]",
            "ipu.micro_batch_size=64",
            "ipu.inference_device_iterations=1",
            "schedule.warmup_epochs=0",
            "optimizer.lr=1e30",
            "training.epochs=1",
        ],
    )
    trial = train_trial(config)
    assert (trial.loss, trial.validation_loss, trial.curve) == (None, None, [])
    assert trial.accuracy == pytest.approx(0.1, abs=0.05)  # of ten digits, one is guessed
    assert trial.losses[0] == pytest.approx(2.3, abs=0.3)
    assert trial.diverged.startswith("the loss is")
    assert trial.epochs == 1 / 2  # one host call of 512 images, of two
