"""Weights & Biases: what is sent, and one sentence where it is not installed."""

import sys
import types

import pytest

from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.training import EpochResult, Evaluation, StepResult
from ipu_proxynorm.training.tracking import WandbTracker, load_wandb

STEP = StepResult(
    epoch=1, step=3, loss=0.5, accuracy=0.25, learning_rate=0.1, images_per_second=10.0
)
EPOCH = EpochResult(
    epoch=1,
    loss=0.5,
    accuracy=0.25,
    images_per_second=10.0,
    validation=Evaluation(loss=0.4, right=3, images=4),
    best=True,
)


def config(*overrides):
    return load("configs/quickstart.yaml", overrides)


def test_no_tracker_unless_asked():
    assert load_wandb(config()) is None


def test_it_is_one_sentence_where_wandb_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import then fails
    with pytest.raises(UserError, match=r"^training.wandb=digits: .* not installed .*pip install"):
        load_wandb(config("training.wandb=digits"))


def test_steps_and_epochs_are_sent(monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self, exit_code):
            calls.append(("finish", exit_code))

    def init(**arguments):
        calls.append(("init", arguments))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    asked = config("training.wandb=digits")
    tracker = WandbTracker(load_wandb(asked), asked, "runs/quickstart")
    tracker.log(STEP, 3)
    tracker.log(EPOCH, 3)
    tracker.close()
    (_, given), (at, step), (_, epoch), end = calls
    assert (given["project"], given["name"]) == ("digits", "quickstart")
    assert (given["dir"], given["config"]["model"]["norm"]) == ("runs/quickstart", "gn4+pn")
    assert at == 3
    assert step["train/loss"] == 0.5
    assert step["train/learning_rate"] == 0.1
    assert epoch["validation/accuracy"] == 0.75
    assert epoch["validation/loss"] == 0.4
    assert epoch["epoch/accuracy"] == 0.25
    assert end == ("finish", 0)
