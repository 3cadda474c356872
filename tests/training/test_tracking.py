"""Weights & Biases: what is sent, and one sentence where it is not installed."""

import sys
import types

import pytest

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.state import read_state
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
    assert load_wandb(None) is None


def test_it_is_one_sentence_where_wandb_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import then fails
    with pytest.raises(UserError, match=r"^training.wandb=digits: .* not installed .*pip install"):
        load_wandb("digits")


def test_no_way_to_wandb_is_one_sentence_and_the_run_has_failed(monkeypatch, tmp_path, capsys):
    def init(**arguments):
        raise ConnectionError("api_key not configured\n(no-tty)")

    module = types.SimpleNamespace(init=init, Error=ConnectionError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    overrides = [f"runs={tmp_path}", "training.wandb=digits"]
    assert main(["train", "configs/quickstart.yaml", *overrides]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "ipu-proxynorm: error: training.wandb=digits: api_key not configured (no-tty); set "
        "WANDB_MODE=offline, or training.wandb=null"
    ]
    assert read_state(tmp_path / "quickstart").describe() == "failed"


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

    module = types.SimpleNamespace(init=init, Error=ConnectionError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    asked = config("training.wandb=digits")
    for started in ("yesterday", "yesterday", "today"):
        WandbTracker(load_wandb(asked.training.wandb), asked, "runs/quickstart", started)
    assert [given["id"] == calls[0][1]["id"] for _, given in calls] == [True, True, False]
    assert calls[1][1]["resume"] == "allow"
    calls.clear()
    tracker = WandbTracker(load_wandb(asked.training.wandb), asked, "runs/quickstart", "today")
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
