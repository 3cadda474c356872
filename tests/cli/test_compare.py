"""``run_ipu.py compare``: what is run, what is kept, and what is undefined."""

import csv
import json
import os
import random
import signal

import PIL.Image
import pytest

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.records import Records
from ipu_proxynorm.training import trial
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
    with (folder / "table.csv").open(encoding="utf-8") as stream:
        done, undefined = csv.DictReader(stream)
    accuracies = [100 * rows[0]["accuracy"], 100 * rows[2]["accuracy"]]
    assert float(done["validation accuracy, %"]) == pytest.approx(sum(accuracies) / 2)
    error = abs(accuracies[0] - accuracies[1]) / 2
    assert float(done["its standard error, %"]) == pytest.approx(error)
    assert float(done["predicted SRAM, MiB"]) > 1
    assert (undefined["norm"], undefined["seeds"], undefined["time per step, ms"]) == (
        "gn5",
        "0",
        "",
    )
    assert "5 groups do not divide 16 channels" in undefined["why undefined"]
    assert "5 groups do not divide 16 channels" in (folder / "report.html").read_text("utf-8")
    assert (folder / "runs" / "gn4+pn_mb32_seed1" / "last.pt").is_file()


def test_a_rerun_does_only_what_is_missing(compared, capsys):
    folder, options = compared
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[1:]) + lines[0][:50])  # killed in a write
    status, output = run(capsys, "compare", *SMALL, *options, "--format", "csv")
    assert status == 0
    assert "4 runs of 1 epoch, 32 images per weight update; 3 of them done" in output.out
    assert "1/1  gn4+pn_mb32_seed0" in output.out
    again = (folder / "rows.jsonl").read_text().splitlines()
    assert json.loads(again[-1])["accuracy"] == json.loads(lines[0])["accuracy"]  # reproduced
    status, output = run(capsys, "compare", *SMALL, *options, "--format", "csv")
    assert "; 4 of them done" in output.out
    # Rows of another configuration are not these.
    options = [*options, "optimizer.lr=0.05", "--norms", "gn5"]
    status, output = run(capsys, "compare", *SMALL, *options, "--format", "csv")
    assert "; 0 of them done" in output.out


def test_a_run_that_was_stopped_is_gone_on_with(monkeypatch, capsys, tmp_path):
    asked = [*SMALL, "training.epochs=2", "--norms", "gn4+pn", "--proxy", "running"]
    asked += ["training.line_seconds=0.001", "--format", "csv", "--out"]
    assert run(capsys, "compare", *asked, tmp_path / "whole")[0] == 0
    fit = trial.fit

    def killed_in_the_second_epoch(*arguments):
        for number, result in enumerate(fit(*arguments)):
            if number == 34:  # of 32 host calls an epoch
                os.kill(os.getpid(), signal.SIGTERM)
            yield result

    def trained_again(*arguments):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(trial, "fit", killed_in_the_second_epoch)
        status, output = run(capsys, "compare", *asked, tmp_path / "parts")
    assert (status, "with a checkpoint of it: the same command goes on" in output.err) == (
        143,
        True,
    )
    assert run(capsys, "compare", *asked, tmp_path / "parts")[0] == 0
    assert row(tmp_path / "parts") == row(tmp_path / "whole")
    rows = tmp_path / "parts" / "rows.jsonl"
    rows.unlink()  # killed before it was written
    with monkeypatch.context() as patch:
        patch.setattr(trial, "fit", trained_again)
        assert run(capsys, "compare", *asked, tmp_path / "parts")[0] == 0
    assert row(tmp_path / "parts") == row(tmp_path / "whole")
    rows.unlink()
    assert run(capsys, "compare", *asked, tmp_path / "parts", "training.epochs=1")[0] == 0
    assert len(row(tmp_path / "parts")["curve"]) == 1  # another run: not what is left of this one


def test_behind_a_damaged_checkpoint_the_one_before_is_gone_on_with(monkeypatch, capsys, tmp_path):
    asked = [*SMALL, "training.epochs=2", "--norms", "gn4+pn", "--format", "csv"]
    asked += ["training.keep_checkpoints=2", "--out", tmp_path]
    assert run(capsys, "compare", *asked)[0] == 0
    whole = row(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    last = tmp_path / "runs" / "gn4+pn_mb32_seed0" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    fit, begun = trial.fit, []

    def noted(built, directory, start, *rest):
        begun.append(None if start is None else start.epoch)
        return fit(built, directory, start, *rest)

    monkeypatch.setattr(trial, "fit", noted)
    status, output = run(capsys, "compare", *asked)
    assert (status, begun, row(tmp_path)) == (0, [1], whole)
    assert "last.pt'" in output.err
    assert ": it is not gone on with" in output.err
    (tmp_path / "rows.jsonl").unlink()
    with (last.parent / "metrics.jsonl").open("a") as stream:
        stream.write("{}\n")
    status, output = run(capsys, "compare", *asked)
    assert (status, begun, row(tmp_path)) == (0, [1, None], whole)
    assert "line 67 is not a record of a run: gn4+pn_mb32_seed0 is trained anew" in output.err


@pytest.fixture
def ten_classes(tmp_path):
    """A folder of ten classes with four training images and one validation image each."""
    chance = random.Random(0)
    for part, count in (("train", 4), ("test", 1)):
        for name in "abcdefghij":
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = bytes(chance.randrange(256) for _ in range(3 * 32 * 32))
                PIL.Image.frombytes("RGB", (32, 32), pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_rows_hold_wherever_the_same_images_are(capsys, tmp_path, ten_classes):
    asked = [DIGITS, "training.epochs=1", "data.name=cifar10", "--norms", "gn4", "--format", "csv"]
    asked += ["--out", tmp_path / "out"]
    assert run(capsys, "compare", *asked, f"data.path={ten_classes}")[0] == 0
    elsewhere = ten_classes.rename(tmp_path / "elsewhere")
    asked += [f"data.path={elsewhere}"]
    status, output = run(capsys, "compare", *asked, "data.workers=1", "training.line_seconds=1")
    assert (status, "; 1 of them done" in output.out) == (0, True)
    (elsewhere / "train" / "a" / "0.png").rename(elsewhere / "train" / "a" / "9.png")
    status, output = run(capsys, "compare", *asked)
    assert (status, "; 0 of them done" in output.out) == (0, True)


def test_a_signal_after_the_last_host_call_of_a_run_is_not_lost(monkeypatch, capsys, tmp_path):
    fit = trial.fit

    def signalled_after_it(*arguments):
        yield from fit(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trial, "fit", signalled_after_it)
    asked = [*SMALL, "--norms", "gn4", "--seeds", "0,1", "--format", "csv", "--out", tmp_path]
    status, output = run(capsys, "compare", *asked)
    assert (status, "interrupted after gn4_mb32_seed0: the same" in output.err) == (143, True)
    assert row(tmp_path)["seed"] == 0  # kept; the next one was not begun


@pytest.mark.parametrize(
    "line", ['{"step": 1}', '{"kind": "train", "epoch": 1, "loss": "a"}', '{"kind": "other"}', "3"]
)
def test_metrics_that_training_does_not_write_are_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n", "utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl': line 1 is not a record of a run"):
        Records.of(tmp_path)


def row(folder):
    """The only row of a comparison, without its times."""
    (line,) = (folder / "rows.jsonl").read_text("utf-8").splitlines()
    return {key: value for key, value in json.loads(line).items() if key != "seconds_per_step"}


def test_a_report_of_the_runs_that_are_done(compared, capsys):
    folder, options = compared
    asked = [*SMALL, *options, "--seeds", "0,1,7", "--done", "--format", "html"]
    before = (folder / "rows.jsonl").read_text("utf-8")
    status, output = run(capsys, "compare", *asked, "--norms", "gn4+pn")
    sentence = "Not done, 1 runs: gn4+pn at micro-batch 32: seed 7."
    assert (status, "2 of them done" in output.out, sentence in output.out) == (0, True, True)
    assert sentence in (folder / "report.html").read_text("utf-8")
    assert (folder / "rows.jsonl").read_text("utf-8") == before
    status, output = run(capsys, "compare", *asked, "--norms", "ln")
    assert (status, "--done: none of these runs is done" in output.err) == (2, True)


def test_a_key_for_one_norm_alone(capsys, tmp_path):
    options = ["--norms", "ln,gn4", "--out", tmp_path, "--format", "csv"]
    own = ["--for", "gn4:optimizer.lr=0.05"]
    assert run(capsys, "compare", *SMALL, *options)[0] == 0
    status, output = run(capsys, "compare", *SMALL, *options, *own)
    assert status == 0
    assert "; 1 of them done" in output.out  # ln's: the key is not among those that all share
    assert "1/1  gn4_mb32_lr=0.05_seed0" in output.out
    assert "gn4 alone: optimizer.lr=0.05." in output.out
    assert run(capsys, "compare", *SMALL, *options, "--norms", "gn4", "optimizer.lr=0.05")[0] == 0
    lines = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    shared, alone, plain = [json.loads(lines[number]) for number in (1, 2, 3)]
    assert alone["accuracy"] == plain["accuracy"]
    assert alone["losses"] == plain["losses"] != shared["losses"]


def test_other_moments_in_the_proxys_place(capsys, tmp_path):
    options = [
        "--norms",
        "ln,ln+pn",
        "--proxy",
        "assumed,true",
        "--out",
        tmp_path,
        "--format",
        "csv",
    ]
    status, output = run(capsys, "compare", *SMALL, *options)
    assert (status, "3 runs of 1 epoch" in output.out) == (0, True)  # ln has no proxy: once
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    assert [(row["norm"], row["proxy"]) for row in rows] == [
        ("ln", ""),
        ("ln+pn", "assumed"),
        ("ln+pn", "true"),
    ]
    assert len({row["loss"] for row in rows}) == 3
    with (tmp_path / "table.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [row["variant"] for row in table] == ["", "proxy=assumed", "proxy=true"]
    assert [row["predicted SRAM, MiB"] != "" for row in table] == [True, True, False]
    status, output = run(capsys, "compare", *SMALL, *options)
    assert "3 of them done" in output.out


def test_a_file_where_the_folder_should_be(capsys, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    status, output = run(capsys, "compare", *SMALL, "--norms", "ln", "--out", out)
    assert (status, output.out, output.err.count("\n")) == (2, "", 1)
    assert "not a folder); choose another folder with --out" in output.err


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


def test_a_run_that_diverges_is_a_row_that_says_why(capsys, tmp_path):
    options = ["--norms", "none", "optimizer.lr=1e6", "--out", tmp_path, "--format", "html,json"]
    status, output = run(capsys, "compare", *SMALL, *options)
    assert status == 0
    assert "1/1  none_mb32_seed0: diverged: the loss is" in output.out
    assert "diverged)" in output.out
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (row,) = results["rows"]
    assert (row["status"], row["loss"]) == ("diverged", None)
    assert "try a lower optimizer.lr" in row["reason"]
    assert row["losses"][-1][0] < 1  # its curve ends where the run did
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "none at micro-batch 32, seed 0, diverged: the loss is" in page
    status, output = run(capsys, "compare", *SMALL, *options)
    assert "1 run of 1 epoch, 32 images per weight update; 1 of them done" in output.out


def test_nothing_but_undefined_norms_is_a_report_without_plots(capsys, tmp_path):
    options = ["--norms", "gn5,gn7", "--out", tmp_path, "--format", "html,png,csv"]
    status, _ = run(capsys, "compare", *SMALL, *options)
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "rows.jsonl", "table.csv"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "7 groups do not divide 16 channels" in page
    assert "Training curves" not in page


WRONG = {
    "divisor": (["--micro-batch", "3"], ["--micro-batch 3", "does not divide the 32 images"]),
    "sizes": (["--micro-batch", "0,1"], ["--micro-batch=0,1", "from 1 up"]),
    "seeds": (["--seeds", "a"], ["--seeds=a", "from 0 up"]),
    "norms": (["--norms", "ln+pm"], ["--norms=ln+pm", "'ln+pn'"]),
    "no norm": (["--norms", ","], ["--norms=,", "expected norm specs"]),
    "vary": (["--vary", "training.label_smoothing"], ["expected KEY=VALUE,VALUE"]),
    "vary seed": (["--vary", "seed=1,2"], ["--vary 'seed=1,2'", "choose with --seeds"]),
    "vary twice": (
        ["--vary", "optimizer.lr=0.1", "--vary", "optimizer.lr=0.2"],
        ["--vary optimizer.lr: given twice"],
    ),
    "vary images": (
        ["--vary", "ipu.replication_factor=1,2"],
        ["--vary ipu.replication_factor=2", "64 images per weight update", "CONFIG's 32"],
    ),
    "proxy": (["--proxy", "truth"], ["--proxy: 'truth' is unknown: did you mean 'true'"]),
    "no proxy": (["--proxy", "true", "--norms", "bn,ln"], ["none of --norms bn,ln has Proxy Norm"]),
    "for": (["--for", "optimizer.lr=0.1"], ["--for 'optimizer.lr=0.1'", "NORM:KEY=VALUE"]),
    "for another": (
        ["--for", "gn8:optimizer.lr=0.1"],
        ["a norm of --norms (bn,gn4,gn4+pn,ln,ln+pn)"],
    ),
    "for seed": (["--for", "ln:seed=1"], ["--for 'ln:seed=1'", "choose with --seeds"]),
    "for twice": (
        ["--for", "ln:optimizer.lr=0.1", "--for", "ln:optimizer.lr=0.2"],
        ["--for 'ln:optimizer.lr=0.2': optimizer.lr is set twice"],
    ),
    "for and vary": (
        ["--for", "ln:optimizer.lr=0.1", "--vary", "optimizer.lr=0.1,0.2"],
        ["--for 'ln:optimizer.lr=0.1': optimizer.lr is set twice"],
    ),
    "for images": (["--for", "ln:ipu.replication_factor=2"], ["--for ln:ipu.replication_factor=2"]),
    "not validated": (["training.validate=never"], ["training.validate=never", "epoch or end"]),
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


def test_a_batch_that_fills_no_pipeline_or_mixes_nothing_is_a_row(capsys, tmp_path):
    options = ["ipu.splits=[layer2.0]", "--norms", "gn4", "--micro-batch", "1,16,32"]
    options += [
        "training.mixup_alpha=0.2",
        "ipu.micro_batch_size=2",
        "ipu.gradient_accumulation=16",
    ]
    command = ["compare", *SMALL, *options, "--out", tmp_path, "--format", "csv"]
    wrong = [*command, "--vary", "training.mixup_alpha=-1,0"]
    assert run(capsys, *wrong)[0] == 2  # what no batch mends fails before anything runs
    assert list(tmp_path.iterdir()) == []
    status, output = run(capsys, *command)
    assert status == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["micro_batch"], row["status"]) for row in rows] == [
        (32, "undefined"),
        (16, "undefined"),
        (1, "undefined"),
    ]
    assert "needs at least 3 (2S-1) micro-batches in flight" in rows[0]["reason"]
    assert "ipu.gradient_accumulation=2" in rows[1]["reason"]
    assert "mix-up mixes the images of a micro-batch" in rows[2]["reason"]
    assert "undefined" in output.out
    assert "; 3 of them done" in run(capsys, *command)[1].out
