"""What reaches the terminal: nothing that acts on it, and names that are never cut."""

import io
import json
import os
import re
import sys
import warnings

import pytest
from rich.table import Table
from rich.text import Text

from ipu_proxynorm import __main__
from ipu_proxynorm.cli import main
from ipu_proxynorm.cli.main import notices_alone
from ipu_proxynorm.cli.output import CleanConsole, Output
from ipu_proxynorm.config import documentation
from ipu_proxynorm.errors import printable, say

#: A title, a colour, an 8-bit sequence, a carriage return, reversed text.
HOSTILE = "\x1b]0;owned\x07 \x1b[31mred \x9b2J \rover \x7f \u202etxt"
SHOWN = r"\x1b]0;owned\x07 \x1b[31mred \x9b2J \rover \x7f \u202etxt"


def run(capsys, *arguments):
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    printed = capsys.readouterr()
    for text in printed:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), ascii(text)
    return status, printed.out, printed.err


def printed(thing, width=200, **more):
    stream = io.StringIO()
    console = CleanConsole(Output(stream))
    console.width = width
    console.print(thing, **more)
    return stream.getvalue()


def test_control_characters_are_written_out_and_words_of_all_languages_left():
    assert printable(HOSTILE) == SHOWN
    kept = "Größe\t网络\nعربى e\u0301 👩\u200d🔬 \xa0"
    assert printable(kept) == kept


def test_a_console_prints_strings_texts_and_cells_clean():
    assert printed(HOSTILE) == f"{SHOWN}\n"
    assert printed(Text(HOSTILE)).startswith(r"\x1b]0;owned")
    assert "\x1b" not in printed(Text(HOSTILE))
    table = Table("\x1b[2J", title="\x1b[31m")
    table.add_row(HOSTILE)
    shown = printed(table)
    assert SHOWN in shown
    assert "\x1b" not in shown


def test_cells_are_as_wide_as_what_is_shown():
    table = Table("name", "figure")
    table.add_row("\x1b" * 5, "1")
    lines = printed(table).splitlines()
    assert len(set(map(len, lines))) == 1
    assert r"\x1b\x1b\x1b\x1b\x1b" in lines[3]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", HOSTILE),
        ("train", "configs/quickstart.yaml", f"model.name={HOSTILE}"),
        ("train", "configs/quickstart.yaml", f"{HOSTILE}=1"),
        ("train", "--keys", HOSTILE),
        ("validate", f"runs/{HOSTILE}"),
        ("predict", HOSTILE, HOSTILE),
        ("export", HOSTILE, HOSTILE),
        ("runs", HOSTILE),
        ("memory", "configs/quickstart.yaml", "--format", HOSTILE),
        ("compare", "configs/quickstart.yaml", "--norms", HOSTILE),
        (HOSTILE,),
        ("doctor", f"--{HOSTILE}"),
        ("train", "configs/quickstart.yaml", "--checkpoint", HOSTILE, "--overwrite", "--resume"),
    ],
)
def test_what_was_typed_does_not_act_on_the_terminal(capsys, arguments):
    run(capsys, *arguments)


def test_names_within_files_do_not_either(capsys, tmp_path):
    config = tmp_path / "a.yaml"
    for text in (
        '"\\e[31m": 1',
        'name: "\\e[31m"\nmodel: {name: "\\x9b1m"}',
        'defaults: ["\\e[2J.yaml"]',
        "a: \x1b[31m",
    ):
        config.write_text(text)
        assert run(capsys, "train", config)[0] == 2
    folder = tmp_path / "\x1b[31mrun"
    folder.mkdir()
    state = {"state": "failed", "started": "", "seconds": 1.0, "process": 1, "host": "h"}
    (folder / "state.json").write_text(json.dumps({**state, "message": HOSTILE}))
    (folder / "config.yaml").write_text("a: \x1b")
    assert run(capsys, "runs", tmp_path)[0] == 0


def test_warnings_and_tracebacks_are_clean(capsys):
    with notices_alone():
        warnings.warn(HOSTILE, UserWarning, stacklevel=1)
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError:
        __main__.show_traceback(*sys.exc_info())
    error = capsys.readouterr().err
    assert error.count(SHOWN) == 2
    assert "\x1b" not in error


@pytest.mark.parametrize("width", [10, 40, 80, 300])
def test_no_keys_name_is_cut(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    status, shown, _ = run(capsys, "train", "--keys")
    assert status == 0
    for key in documentation():
        assert f"\n  {key.name}  (" in shown
    heads = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    assert heads == [
        "the run",
        *(f"{name}: {text}" for name, text in (
            ("model", "the network"),
            ("data", "the images"),
            ("ipu", "layout over IPUs"),
            ("optimizer", "weight update"),
            ("schedule", "learning rate over the run"),
            ("training", "the loop"),
        )),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("model.norm", ["model.norm", "model.norm_eps"]),
        ("ipu.*_tiles", ["ipu.io_tiles"]),
        ("SEED", ["seed"]),
        ("smoothing", ["training.label_smoothing"]),
        ("cut-mix: largest", ["training.cutmix_lambda_high"]),
    ],
)
def test_keys_by_a_pattern(capsys, pattern, names):
    _, shown, _ = run(capsys, "train", "--keys", pattern)
    assert re.findall(r"^  (\S+)  \(", shown, re.MULTILINE) == names


def test_a_pattern_without_a_key(capsys):
    status, _, error = run(capsys, "train", "--keys", "num_epochs")
    assert status == 2
    assert "--keys 'num_epochs': no key" in error
    assert "did you mean training.epochs?" in error


def test_the_schema_is_printed_or_written(capsys, tmp_path):
    status, shown, _ = run(capsys, "schema")
    assert status == 0
    file = tmp_path / "s" / "ipu.json"
    assert run(capsys, "schema", "--output", file)[1] == f"wrote {file}\n"
    assert json.loads(file.read_text()) == json.loads(shown)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("POPTORCH_SIM_DEVICE", "gpu", "the simulator computes on cpu, cuda or"),
        ("POPTORCH_SIM_DEVICE", "cuda:99", "unset POPTORCH_SIM_DEVICE to compute on the CPU"),
        ("POPTORCH_SIM_TOGETHER", "many", "expected the largest number of images"),
        ("POPTORCH_DEFAULT_OPTIONS", "{", "not the JSON of PopTorch's options"),
        ("POPTORCH_DEFAULT_OPTIONS", '{"nothing": 1}', "not the JSON of PopTorch's options"),
    ],
)
@pytest.mark.simulator
def test_a_variable_that_no_program_runs_with_is_said_before_a_folder_is_made(
    capsys, monkeypatch, tmp_path, variable, value, words
):
    monkeypatch.setenv(variable, value)
    status, _, error = run(capsys, "train", "configs/quickstart.yaml", f"runs={tmp_path / 'runs'}")
    assert status == 2
    assert error.count("\n") == 1
    assert f"error: {variable}={value}: " in error
    assert words in error
    assert list(tmp_path.iterdir()) == []
    status, _, error = run(capsys, "doctor")
    assert (status, f"{variable}={value}: " in error) == (2, True)


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
@pytest.mark.parametrize("command", ["compare", "analyse", "memory"])
def test_what_draws_is_asked_for_before_anything_is_computed(
    capsys, monkeypatch, tmp_path, command, missing
):
    monkeypatch.setitem(sys.modules, missing, None)
    for module in ("html", "figure"):
        monkeypatch.delitem(sys.modules, f"ipu_proxynorm.report.{module}", raising=False)
    option = "--output" if command == "memory" else "--out"
    arguments = (command, "configs/quickstart.yaml", option, tmp_path / "out")
    status, shown, error = run(capsys, *arguments)
    assert (status, shown, list(tmp_path.iterdir())) == (2, "", [])
    assert re.search(rf"need {missing} .*: \S+ -m pip install \S.*\[report\]'?, or ask", error)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")
def test_what_standard_error_cannot_take_is_not_tried_again(monkeypatch):
    with open("/dev/full", "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        say("a warning")
        stream.flush()
