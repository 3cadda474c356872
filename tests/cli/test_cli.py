"""The command: a run from beginning to end, and one sentence for everything that is wrong."""

import os
import re
import subprocess
import sys

import pytest

from ipu_proxynorm.cli import main

QUICKSTART = "configs/quickstart.yaml"
SMALL = ["training.epochs=1", "ipu.micro_batch_size=8"]


def run(capsys, *arguments):
    """Exit status and what was printed."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    return status, capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch: its folder and what was printed."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "run_ipu.py", "train", QUICKSTART, f"runs={runs}", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return runs / "quickstart", done.stdout


def test_train_says_first_what_it_will_do(trained):
    _, printed = trained
    assert (
        "8 (micro-batch) x 2 (replicas) x 4 (gradient accumulation) x 1 (device iterations) = 64"
        in printed
    )
    assert "1437 training images = 22 host calls x 64 + 29 dropped" in printed
    assert "22 weight updates of 64 images; 360 validation images" in printed
    assert "learning rate: 0.1 (sgd), cosine after 1 epoch of warm-up; precision 32.32" in printed
    for row in (r"decayed .* 0.0005", r"not decayed .* 0 ", r"proxy .* 0.0005"):
        assert re.search(row, printed), row
    for row in (r"0 .* 0 .* stem layer1.0 ", r"1 .* 1 .* layer2.0 \.\.\. fc "):
        assert re.search(row, printed), row


def test_train_reports_each_epoch_and_leaves_a_run(trained):
    folder, printed = trained
    assert re.search(r"epoch 1/1 .* loss .* validation: loss .* accuracy \d+\.\d\d%", printed)
    found = {path.name for path in folder.iterdir()}
    assert found == {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "state.json",
        "last.pt",
        "best.pt",
    }


def test_validate_gives_the_same_accuracy(trained, capsys):
    folder, printed = trained
    status, output = run(capsys, "validate", folder)
    assert status == 0
    (expected,) = re.findall(r"last epoch: validation accuracy (\S+) \((\d+) of 360\)", printed)
    figures = r"accuracy (\S+) \((\d+) of 360 images\); in training: (\S+)"
    assert re.findall(figures, output.out) == [(*expected, expected[0])] * 2  # last and best
    for name in ("last", "best"):
        status, one = run(capsys, "validate", folder, "--checkpoint", name)
        assert status == 0
        assert one.out in output.out


def test_doctor_says_what_runs_and_why(capsys):
    status, output = run(capsys, "doctor")
    assert status == 0
    for word in ("backend: ", "IPUs: ", "poptorch", "torch", "Python"):
        assert word in output.out


@pytest.mark.simulator
def test_doctor_says_how_a_runs_programs_are_computed(capsys, monkeypatch):
    monkeypatch.setenv("POPTORCH_SIM_TOGETHER", "")
    status, output = run(capsys, "doctor", QUICKSTART, "ipu.precision=16.16")
    assert status == 0
    assert (
        "training: micro-batches are computed one after the other: gradients are rounded to "
        "float16 for each micro-batch\n"
        "validation: 10 micro-batches are computed together\n"
    ) in output.out


@pytest.mark.simulator
def test_doctor_gives_the_original_import_error():
    done = subprocess.run(
        [sys.executable, "run_ipu.py", "doctor"], capture_output=True, text=True, check=True
    )
    assert (
        "backend: simulator (import poptorch: ModuleNotFoundError: No module named" in done.stdout
    )


def train(*overrides):
    return ["train", QUICKSTART, *overrides]


WRONG = {
    "unknown key": (train("model.nrom=ln"), ["model.nrom", "'ln'", "'model.norm'"]),
    "wrong type": (train("training.epochs=ten"), ["training.epochs", "'ten'", "int"]),
    "unknown model": (train("model.name=resnet_20"), ["model", "'resnet_20'", "'resnetv2_20'"]),
    "unknown norm": (train("model.norm=ln+pm"), ["norm=ln+pm", "ln+pn"]),
    "unknown activation": (train("model.activation=rellu"), ["rellu", "relu"]),
    "unknown dataset": (train("data.name=digit"), ["data.name", "'digit'", "'digits'"]),
    "groups": (train("model.norm=gn5"), ["norm=gn5", "16"]),
    "no layer": (train("ipu.splits=[layer2]"), ["ipu.splits", "'layer2'", "layer2.0"]),
    "order": (
        train("ipu.splits=[layer3.0,layer2.0]", "ipu.gradient_accumulation=5"),
        ["ipu.splits", "'layer2.0' does not come after 'layer3.0'", "expected ['layer2.0'"],
    ),
    "accumulation": (
        train("ipu.gradient_accumulation=2"),
        ["ipu.gradient_accumulation=2", "2S-1", "ipu.gradient_accumulation=3 or more"],
    ),
    "data path": (
        train("data.name=image_folder", "data.path=/nowhere"),
        ["data.path='/nowhere'", "train/<class>/"],
    ),
    "batch": (train("ipu.micro_batch_size=1000"), ["1437", "8000", "lower"]),
    "trainable": (
        train("training.trainable=[layer4]"),
        ["training.trainable=['layer4']", "'layer4' is no layer", "nearest: layer"],
    ),
    "init_from": (train("training.init_from=runs/none/last.pt"), ["no such checkpoint"]),
    "mixing": (
        train("training.mixup_alpha=0.1", "ipu.micro_batch_size=1"),
        ["ipu.micro_batch_size=1", "mix-up", "training.mixup_alpha=0"],
    ),
    "no config": (["train", "configs/quick.yaml"], ["configs/quick.yaml", "quickstart.yaml"]),
    "no CONFIG": (["train"], ["CONFIG is missing", "configs/quickstart.yaml"]),
    "no run": (["validate", "runs/none"], ["'runs/none'", "expected the folder of a run"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_sentence_and_status_2(capsys, tmp_path, case):
    arguments, parts = WRONG[case]
    if arguments[0] == "train" and len(arguments) > 1:
        arguments = [*arguments, f"runs={tmp_path}"]
    status, output = run(capsys, *arguments)
    assert status == 2
    for part in parts:
        assert part in output.err
    assert output.err.startswith("ipu-proxynorm: error: ")
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err
    assert list(tmp_path.iterdir()) == []  # refused before anything is written


@pytest.mark.parametrize(
    "command", [["fit"], [], ["validate"], ["validate", "x", "--checkpoint", "y"]]
)
def test_a_wrong_command_line_gets_status_2(capsys, command):
    status, output = run(capsys, *command)
    assert status == 2
    assert "error" in output.err


def test_a_run_without_checkpoint_and_with_a_truncated_one(trained, capsys, tmp_path):
    folder, _ = trained
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    status, output = run(capsys, "validate", tmp_path)
    assert status == 2
    assert "last.pt': no such checkpoint; expected" in output.err
    (tmp_path / "best.pt").write_bytes((folder / "best.pt").read_bytes()[:5000])
    status, output = run(capsys, "validate", tmp_path, "--checkpoint", "best")
    assert status == 2
    assert "best.pt' is truncated" in output.err
    assert output.err.count("\n") == 1


def test_a_checkpoint_of_another_network(trained, capsys, tmp_path):
    folder, _ = trained
    config = (folder / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("resnetv2_8", "resnetv2_14"))
    (tmp_path / "last.pt").write_bytes((folder / "last.pt").read_bytes())
    status, output = run(capsys, "validate", tmp_path)
    assert status == 2
    assert "resnetv2_8" in output.err
    assert "resnetv2_14" in output.err


def test_overrides_may_stand_on_either_side_of_an_option(capsys):
    train = ["train", QUICKSTART]
    for words in (
        [*train, "model.norm=gn5", "--overwrite"],
        [*train, "--overwrite", "model.norm=gn5"],
        [*train, "name=other", "--overwrite", "model.norm=gn5"],
        ["train", "--overwrite", QUICKSTART, "model.norm=gn5"],
    ):
        status, output = run(capsys, *words)
        assert (status, "norm=gn5" in output.err) == (2, True), words
    status, output = run(capsys, *train, "--overwrite", "model.norm=gn5", "--overwite")
    assert (status, "unrecognized arguments: --overwite" in output.err) == (2, True)
    status, output = run(capsys, "runs", "now", "then")
    assert (status, "unrecognized arguments: then" in output.err) == (2, True)


def test_an_existing_run_is_kept(trained, capsys):
    folder, _ = trained
    before = (folder / "best.pt").read_bytes()
    status, output = run(capsys, "train", QUICKSTART, f"runs={folder.parent}")
    assert status == 2
    assert "--overwrite" in output.err
    assert (folder / "best.pt").read_bytes() == before


def test_no_traceback_reaches_a_shell():
    done = subprocess.run(
        [sys.executable, "run_ipu.py", *train("model.norm=gn5")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("run_ipu.py: error: model=(resnetv2_8, norm=gn5)")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 52 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_sentence_and_other_failures_are_not(monkeypatch, capsys, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("ipu_proxynorm.training.resume.build", fail)
    assert main(["train", "configs/quickstart.yaml"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("ipu-proxynorm: error: this machine's memory does not suffice (")
    error = RuntimeError("a mistake of the program")
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["train", "configs/quickstart.yaml"])


def test_ctrl_c_while_libraries_load_is_one_sentence(tmp_path):
    # A library of the same name that takes its time, found first.
    (tmp_path / "rich.py").write_text("raise KeyboardInterrupt")
    program = os.path.abspath("run_ipu.py")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, program], capture_output=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (ended.returncode, ended.stderr.decode()) == (130, "run_ipu.py: interrupted\n")
