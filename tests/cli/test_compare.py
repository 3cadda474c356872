"""``run_ipu.py compare``: what is run, what is kept, and what is undefined."""

import json

import pytest

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load
from ipu_proxynorm.training.trial import why_undefined

DIGITS = "configs/compare/digits.yaml"
SMALL = [DIGITS, "training.epochs=1", "data.name=synthetic", "data.image_size=8"]


def run(capsys, *arguments):
    """Exit status and what was printed."""
    status = main([str(a) for a in arguments])
    return status, capsys.readouterr()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of two norms, two seeds; one norm is undefined."""
    folder = tmp_path_factory.mktemp("compare")
    options = ["--norms", "gn4+pn,gn5", "--seeds", "0,1", "--out", str(folder)]
    assert main(["compare", *SMALL, *options, "--format", "html,png,csv"]) == 0
    return folder, options


def test_rows_report_and_runs(compared):
    folder, _ = compared
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [(r["norm"], r["seed"], r["status"]) for r in rows] == [
        ("gn4+pn", 0, "done"),
        ("gn5", 0, "undefined"),
        ("gn4+pn", 1, "done"),
        ("gn5", 1, "undefined"),
    ]
    assert rows[0]["accuracy"] != rows[2]["accuracy"] or rows[0]["loss"] != rows[2]["loss"]
    assert "5 groups do not divide 16 channels" in rows[1]["reason"]
    assert {path.name for path in folder.iterdir()} >= {
        "report.html",
        "accuracy.png",
        "curves.png",
        "table.csv",
    }
    table = (folder / "table.csv").read_text(encoding="utf-8")
    assert "gn5,32,-,0,undefined,-,-,-" in table
    assert "5 groups do not divide 16 channels" in (folder / "report.html").read_text("utf-8")
    assert (folder / "runs" / "gn4+pn_mb32_seed1" / "last.pt").is_file()


def test_a_rerun_does_only_what_is_missing(compared, capsys):
    folder, options = compared
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[1:]) + lines[0][:50])  # killed in a write
    status, output = run(capsys, "compare", *SMALL, *options, "--format", "csv")
    assert status == 0
    assert "4 runs of 1 epoch, 32 images per weight update; 3 are done" in output.out
    assert "1/1  gn4+pn_mb32_seed0" in output.out
    again = (folder / "rows.jsonl").read_text().splitlines()
    assert json.loads(again[-1])["accuracy"] == json.loads(lines[0])["accuracy"]  # reproduced
    status, output = run(capsys, "compare", *SMALL, *options, "--format", "csv")
    assert "; 4 are done" in output.out
    # Rows of another configuration are not these.
    options = [*options, "optimizer.lr=0.05", "--norms", "gn5"]
    status, output = run(capsys, "compare", *SMALL, *options, "--format", "csv")
    assert "; 0 are done" in output.out


def test_batch_norm_at_micro_batch_1_is_undefined_at_one_pixel_only(capsys, tmp_path):
    """ResNet-8 ends at a quarter of the resolution: 1x1 of images of 4x4."""
    options = ["--norms", "bn", "--micro-batch", "1", "--format", "json", "--out", tmp_path]
    small = [*SMALL, "data.image_size=4", "ipu.gradient_accumulation=1", "ipu.micro_batch_size=1"]
    config = [*small[1:], "model.norm=bn"]
    assert "the variance of one value is none" in why_undefined(load(DIGITS, config))
    assert why_undefined(load(DIGITS, [*config, "data.image_size=8"])) == ""
    assert why_undefined(load(DIGITS, [*config, "ipu.micro_batch_size=2"])) == ""
    config += ["ipu.micro_batch_size=2", "model.norm=in"]
    assert "turns everything into 0" in why_undefined(load(DIGITS, config))
    assert why_undefined(load(DIGITS, [*config, "model.norm=ln"])) == ""
    status, output = run(capsys, "compare", *small, *options)
    assert status == 0
    assert "the variance of one value is none" in output.out


WRONG = {
    "divisor": (["--micro-batch", "3"], ["--micro-batch 3", "does not divide the 32 images"]),
    "sizes": (["--micro-batch", "0,1"], ["--micro-batch=0,1", "from 1 up"]),
    "seeds": (["--seeds", "a"], ["--seeds=a", "from 0 up"]),
    "norms": (["--norms", "ln+pm"], ["--norms=ln+pm", "'ln+pn'"]),
    "vary": (["--vary", "training.label_smoothing"], ["expected KEY=VALUE,VALUE"]),
    "vary key": (["--vary", "training.label_smooth=0,1"], ["training.label_smooth", "unknown"]),
    "format": (["--format", "pdf"], ["--format 'pdf'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_sentence_before_anything_runs(capsys, tmp_path, case):
    arguments, parts = WRONG[case]
    status, output = run(capsys, "compare", *SMALL, *arguments, "--out", tmp_path / "out")
    assert status == 2
    assert output.err.count("\n") == 1
    for part in parts:
        assert part in output.err
    assert list(tmp_path.iterdir()) == []
