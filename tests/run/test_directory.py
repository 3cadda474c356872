"""The folder of a run."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError, UserNotice
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


def steps_logged(directory):
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_later_steps_are_forgotten_though_the_metrics_were_rotated(config):
    directory = RunDirectory.create(config)
    for step in (1, 2):
        directory.log("train", step, {"loss": 1.0, "epoch": 1})
    length = directory.metrics_bytes  # as a checkpoint after step 2 has it
    os.truncate(directory.path / "metrics.jsonl", 0)
    for step in (3, 4):
        directory.log("train", step, {"loss": 1.0})
    directory.rewind(length, 3)
    assert steps_logged(directory) == [3]
    with (directory.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')  # killed in the middle of a line
    directory.rewind(length, 3)
    assert steps_logged(directory) == [3]
    directory.close()


def test_a_tensorboard_folder_deleted_under_way_is_made_again(config):
    directory = RunDirectory.create(config)
    directory.log("train", 1, {"loss": 3.0})
    shutil.rmtree(directory.path / "tensorboard")
    with pytest.warns(UserNotice, match=r"tensorboard' was deleted: its steps until here"):
        directory.log("train", 2, {"loss": 2.0})
    directory.close()
    events = EventAccumulator(str(directory.path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2]
    assert steps_logged(directory) == [1, 2]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(config, name):
    directory = RunDirectory.create(config)
    directory.log("train", 1, {"loss": 3.0})
    path = directory.path / name
    for file in path.iterdir() if path.is_dir() else [path]:
        file.unlink()
        os.mkfifo(file)
    with pytest.raises(UserError, match=f"{name}' cannot be written"):
        directory.log("train", 2, {"loss": 2.0})
    directory.close()


def test_steps_stay_in_order_where_the_clock_was_set_back(config, monkeypatch):
    for step, at in ((1, 1e9), (2, 1e9), (3, 1e9 - 3600), (4, 2e9)):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        directory = RunDirectory.reopen(config)
        directory.rewind(directory.metrics_bytes, step - 1)
        for logged in (step, step + 1):  # the second is lost with the process, and made again
            directory.log("train", logged, {"loss": float(at)})
        directory.close()
    events = EventAccumulator(str(directory.path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 1e9), (2, 1e9), (3, float(np.float32(1e9 - 3600))), (4, 2e9), (5, 2e9)]


def test_a_file_system_without_locks_is_used_with_a_notice(config, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserNotice, match="no locks .*no other process trains this run"):
        RunDirectory.create(config).close()


def test_a_run_is_held_before_its_checkpoint_is_read(config, tmp_path, capsys):
    with contextlib.closing(RunDirectory.create(config)) as directory:
        directory.checkpoint("last").write_bytes(b"half of the next one")
        command = ["train", "configs/quickstart.yaml", f"runs={tmp_path}", "--resume"]
        assert main([*command, "training.epochs=3"]) == 2
        assert "another process is training this run" in capsys.readouterr().err
        assert directory.config() == config
