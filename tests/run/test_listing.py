"""The list of runs: one damaged record never hides the rest."""

import json
import random

import pytest

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import dump, load
from ipu_proxynorm.run.directory import METRICS
from ipu_proxynorm.run.listing import list_runs
from ipu_proxynorm.run.state import STATE, RunState, write_state

CONFIGURATION = dump(load("configs/quickstart.yaml"))
LINES = [
    {
        "kind": "train",
        "step": 1,
        "epoch": 1,
        "loss": 1.0,
        "accuracy": 0.5,
        "images_per_second": 5.0,
    },
    {"kind": "validation", "step": 1, "epoch": 1, "accuracy": 0.75, "loss": 1.0},
    {"kind": "average", "step": 1, "epoch": 1, "accuracy": 0.8, "loss": 1.0},
]


def make(folder, name):
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(CONFIGURATION)
    write_state(run, RunState("finished", "2026-01-02T03:04:05+00:00", 60.0, 77, "here"))
    (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return run


@pytest.fixture
def runs(tmp_path):
    make(tmp_path, "good")
    make(tmp_path, "bad")
    return tmp_path


def listed(runs):
    good, bad = sorted(list_runs(runs), key=lambda run: run.name == "bad")
    assert (good.state, good.last, good.average, good.epochs) == ("finished", 0.75, 0.8, "1/10")
    assert good.message == ""
    return bad


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("state", "gone", "state is not one of running, finished, stopped, failed"),
        ("state", ["running"], "state is not one of"),
        ("started", "yesterday", "started is not a time in ISO 8601"),
        ("started", 5, "started is not a time"),
        ("seconds", float("nan"), "seconds is not a number of seconds"),
        ("seconds", "60", "seconds is not"),
        ("seconds", 1e300, "seconds is not"),
        ("process", 10**30, "process is not the number of a process"),
        ("process", -1, "process is not"),
        ("host", None, "host is not the name of a machine"),
        ("message", 1, "message is not a text or null"),
    ],
)
def test_a_damaged_field_of_the_state_is_named(runs, capsys, field, value, words):
    state = json.loads((runs / "bad" / STATE).read_text())
    (runs / "bad" / STATE).write_text(json.dumps({**state, field: value}))
    bad = listed(runs)
    assert bad.state == "damaged"
    assert f"damaged: {STATE}: {words}" in bad.message
    assert bad.last == 0.75  # the other record is read all the same
    assert main(["runs", str(runs)]) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not a record"),
        ("[" * 100_000, "line 2 is not a record"),
        ('{"kind": "train"}', "line 2 is not a record of a run"),
        (
            '{"kind": "dance", "epoch": 1, "accuracy": 0}',
            "line 2 is not a record of a run: kind is not train",
        ),
        (
            '{"kind": "train", "epoch": "1", "accuracy": 0}',
            "line 2 is not a record of a run: epoch is not a number",
        ),
        (
            '{"kind": "train", "epoch": 1, "accuracy": 7}',
            "line 2 is not a record of a run: accuracy is not a number from 0",
        ),
        (
            '{"kind": "train", "epoch": 1, "accuracy": NaN}',
            "line 2 is not a record of a run: accuracy is not",
        ),
    ],
)
def test_a_damaged_line_of_metrics_is_named(runs, line, words):
    good = (runs / "bad" / METRICS).read_text().splitlines(keepends=True)
    (runs / "bad" / METRICS).write_text(f"{good[0]}{line}\n{good[1]}")
    bad = listed(runs)
    assert bad.state == "damaged"
    assert bad.message.startswith("damaged: ")
    assert f"{METRICS}': {words}" in bad.message


def test_a_last_line_that_was_cut_short_is_no_damage(runs):
    with (runs / "bad" / METRICS).open("a") as stream:
        stream.write('{"kind": "tr')
    assert listed(runs).state == "finished"


def test_a_record_that_cannot_be_read_or_holds_no_text(runs):
    (runs / "bad" / STATE).unlink()
    (runs / "bad" / STATE).mkdir()
    assert "state.json is not a file" in listed(runs).message
    (runs / "bad" / METRICS).write_bytes(b"\xff\xfe\x00\n")
    assert "line 1 is not a record" in listed(runs).message


def test_mutated_records_leave_every_other_run_listed(runs):
    chance = random.Random(0)
    for name in (STATE, METRICS, "config.yaml"):
        path = runs / "bad" / name
        content = path.read_bytes()
        for _ in range(12):
            mutated = bytearray(content)
            for _ in range(chance.randrange(1, 4)):
                mutated[chance.randrange(len(mutated))] = chance.randrange(256)
            cut = chance.choice([len(mutated), chance.randrange(len(mutated))])
            path.write_bytes(bytes(mutated[:cut]))
            listed(runs)
        path.write_bytes(content)
