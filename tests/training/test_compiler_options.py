"""What a run asks of the compiler: its results, and what of it a checkpoint holds to."""

import dataclasses

import pytest
import torch
from torch.utils.data import Subset

from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import build, load_origin
from ipu_proxynorm.training import EpochResult, fit
from ipu_proxynorm.training.diagnosis import find_overflow
from ipu_proxynorm.training.timing import time_on_device

STRIDED = "model.channel_grouping=strided"
OVERLAPPED = ["ipu.overlap_io=true", "ipu.io_tiles=32", "ipu.execution=sharded"]


def small_run(tmp_path, *overrides):
    """One epoch of 32 digits on one IPU."""
    config = load(
        "configs/quickstart.yaml",
        [
            f"runs={tmp_path}",
            "model.width=8",
            "ipu.splits=[]",
            "ipu.gradient_accumulation=2",
            "training.epochs=1",
            *overrides,
        ],
    )
    run = build(config)
    subsets = {part: Subset(getattr(run.data, part), range(32)) for part in ("train", "validation")}
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, **subsets),
        arithmetic=dataclasses.replace(run.arithmetic, images=32),
    )


def trained(tmp_path, *overrides):
    run = small_run(tmp_path, *overrides)
    directory = RunDirectory.create(run.config)
    results = [r for r in fit(run, directory) if isinstance(r, EpochResult)]
    directory.close()
    return results[-1], load_checkpoint(directory.checkpoint("last")), directory


def test_the_device_computes_strided_layers_as_the_host_does(tmp_path):
    result, checkpoint, _ = trained(tmp_path, STRIDED)
    assert "layer1.0.norm1.channel_grouping" in checkpoint.weights
    run = small_run(tmp_path, STRIDED)
    run.model.load_state_dict(dict(checkpoint.weights))
    images, labels = zip(*run.data.validation)
    with torch.no_grad():
        loss, right = run.program.eval()(torch.stack(images), torch.tensor(labels))
    assert float(loss) == pytest.approx(result.validation.loss, rel=1e-4)
    assert float(right) / 32 == result.validation.accuracy
    other, _, _ = trained(tmp_path / "contiguous")
    assert other.loss != result.loss


def test_a_checkpoint_holds_to_its_grouping(tmp_path):
    _, checkpoint, directory = trained(tmp_path, STRIDED)
    last = str(directory.checkpoint("last"))
    for refused in (
        lambda: load_origin(small_run(tmp_path), last),
        lambda: next(fit(small_run(tmp_path), RunDirectory(tmp_path), checkpoint)),
    ):
        with pytest.raises(UserError, match=r"model\.channel_grouping.*strided") as error:
            refused()
        assert "\n" not in str(error.value)
    torch.save(dict(checkpoint.weights), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="is strided, but this layer's is contiguous"):
        load_origin(small_run(tmp_path), str(tmp_path / "weights.pt"))
    load_origin(small_run(tmp_path, STRIDED), str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    "overrides",
    [
        OVERLAPPED,
        [
            "ipu.recomputation=all",
            "ipu.recomputation_checkpoints=[layer2.0]",
            "ipu.stable_norm=true",
            "ipu.deterministic_workers=true",
            "ipu.auto_round_ipus=true",
            "ipu.popart.enableOutlining=false",
        ],
    ],
    ids=["overlapped", "recomputed"],
)
def test_what_changes_memory_and_time_alone_changes_no_number(tmp_path, overrides):
    expected, _, _ = trained(tmp_path / "plain")
    result, _, _ = trained(tmp_path / "asked", *overrides)
    assert (result.loss, result.validation) == (expected.loss, expected.validation)


def test_programs_within_others_overlap_nothing(tmp_path):
    run = small_run(tmp_path, *OVERLAPPED)
    images, labels = zip(*(run.data.train[i] for i in range(16)))
    finding = find_overflow(
        run, run.model.state_dict(), [torch.stack(images), torch.tensor(labels)]
    )
    assert not finding.overflowed
    assert time_on_device(run.config, 1).images_per_second > 0
