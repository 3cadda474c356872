"""``run_ipu.py runs``: every run in one line, whatever has become of it."""

import argparse
import io
import json
import re

from rich.console import Console

from ipu_proxynorm.cli import main, runs
from ipu_proxynorm.config import load
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.state import RunState, write_state


def make(folder, name, *overrides, accuracies=(), averages=(), state=None):
    """The folder of a run with these validations."""
    config = load("configs/quickstart.yaml", [f"runs={folder}", f"name={name}", *overrides])
    directory = RunDirectory.create(config)
    with (directory.path / "metrics.jsonl").open("w") as stream:
        for kind, values in (("validation", accuracies), ("average", averages)):
            for epoch, accuracy in enumerate(values, start=1):
                line = {"kind": kind, "epoch": epoch, "accuracy": accuracy, "loss": 1.0}
                stream.write(json.dumps(line) + "\n")
        stream.write('{"kind": "train", "epo')  # cut short by a kill
    directory.close()
    if state is not None:
        write_state(directory.path, state)
    return directory


def listed(capsys, *arguments):
    assert main(["runs", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_each_run_with_state_norm_result_and_duration(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # what is no terminal has no narrow lines
    at = "2021-06-07T08:09:10+00:00"
    make(
        tmp_path, "first", "model.norm=ln+pn", accuracies=[0.5, 0.75, 0.7],
        state=RunState("finished", at, 3725.4, 1, "here"),
    )  # fmt: skip
    make(
        tmp_path, "second", "model.norm=bn", accuracies=[0.25], averages=[0.3],
        state=RunState("failed", at.replace("06", "07", 1), 61.0, 1, "here", "the loss is nan"),
    )  # fmt: skip
    make(tmp_path, "third")
    (tmp_path / "no run").mkdir()
    printed = listed(capsys, tmp_path)
    for row in (
        r"first .* finished .* resnetv2_8 .* ln\+pn .* 3/10 .* 70.00% .* 75.00% .* - .* 1:02:05",
        r"second .* failed .* bn .* 1/10 .* 25.00% .* 25.00% .* 30.00% .* 0:01:01 .* 2021-07-07",
        r"third .* unknown .* gn4\+pn .* 0/10 .* - .* - .* - .* -",
    ):
        assert re.search(row, printed), row
    assert "second: the loss is nan" in printed
    assert "no run" not in printed


def test_a_narrow_terminal_shows_fewer_columns_and_each_in_full(tmp_path):
    at = "2021-06-07T08:09:10+00:00"
    make(tmp_path, "first", accuracies=[0.5], state=RunState("finished", at, 3.0, 1, "here"))
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    runs.run(argparse.Namespace(folder=tmp_path), terminal)
    printed = terminal.file.getvalue()
    assert re.search(r"first .* finished .* gn4\+pn .* 1/10 .* 50.00% .* 0:00:03", printed)
    assert "started" not in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_run_whose_configuration_is_of_another_version_is_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    directory = make(tmp_path, "old", accuracies=[0.5])
    path = directory.path / "config.yaml"
    path.write_text(path.read_text() + "gone: 1\n")
    printed = listed(capsys, tmp_path)
    assert re.search(r"old .* \? .* 1/\? .* 50.00%", printed)
    assert "old: " in printed
    assert "key 'gone'" in printed


def test_a_folder_without_runs(tmp_path, capsys):
    assert "no runs in" in listed(capsys, tmp_path)


def test_no_such_folder(capsys):
    assert main(["runs", "nowhere"]) == 2
    assert "DIR 'nowhere': no such folder" in capsys.readouterr().err
