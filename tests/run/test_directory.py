"""The folder of a run."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.directory import RunDirectory


@pytest.fixture
def config(tmp_path):
    return load("configs/quickstart.yaml", [f"runs={tmp_path}", "training.epochs=2"])


def test_a_run_keeps_its_resolved_configuration(config, tmp_path):
    directory = RunDirectory.create(config)
    assert directory.path == tmp_path / "quickstart"
    assert RunDirectory(directory.path).config() == config


def test_metrics_go_to_json_lines_and_tensorboard(config):
    directory = RunDirectory.create(config)
    for step, loss in enumerate([2.5, 1.25], start=1):
        directory.log("train", step, {"loss": loss, "epoch": 1})
    directory.close()
    lines = [
        json.loads(line) for line in (directory.path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [
        {"kind": "train", "step": 1, "loss": 2.5, "epoch": 1},
        {"kind": "train", "step": 2, "loss": 1.25, "epoch": 1},
    ]
    events = EventAccumulator(str(directory.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5), (2, 1.25)]


def test_a_run_is_not_overwritten_unasked_and_nothing_else_ever(config):
    directory = RunDirectory.create(config)
    directory.log("train", 1, {"loss": 1.0})
    directory.close()
    directory.checkpoint("last").write_bytes(b"weights")
    (directory.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already holds a run .*last.pt.*--overwrite"):
        RunDirectory.create(config)
    assert directory.checkpoint("last").read_bytes() == b"weights"
    RunDirectory.create(config, overwrite=True)
    assert sorted(p.name for p in directory.path.iterdir()) == ["config.yaml", "notes.txt"]


def test_a_folder_that_is_no_run_and_one_that_cannot_be_written(config, tmp_path):
    with pytest.raises(UserError, match=r"no config.yaml .*runs/quickstart"):
        RunDirectory(tmp_path / "nothing").config()
    (tmp_path / "quickstart").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        RunDirectory.create(config)
