"""Modules of the user's own: their memory and the power after their norms, or a refusal."""

import csv
import sys

import pytest
import torch

from ipu_proxynorm import memory
from ipu_proxynorm.cli import main

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                                  nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8), nn.ReLU())
        self.fc = nn.Linear(8, 10)
    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))
class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 8)
    def forward(self, tokens, scale):
        return (self.table(tokens) * scale).sum()
def fails():
    raise RuntimeError("no weights here")
def number():
    return 3
made = Net()
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    """The file's path; its folder is the current one."""
    (tmp_path / "own_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return "own_net.py"


def table(printed):
    """MiB of each term of the first IPU."""
    rows = [line.rsplit(None, 1) for line in printed.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


@pytest.mark.parametrize("target", ["own_net.py:Net", "own_net.py:made", "own_net:Net"])
def test_memory_of_a_module(net, target, capsys):
    asked = [
        "--input",
        "4x3x64x64",
        "ipu.chip=bow",
        "optimizer.name=adamw",
        "--micro-batch",
        "1..3",
    ]
    assert main(["memory", target, *asked]) == 0
    printed = capsys.readouterr().out
    for words in (
        f"{target.rpartition(':')[2]}: Net (training), micro-batch 4, bow, precision 32.32",
        "training: the largest micro-batch that fits is 3",
        "body.0: convolution",
    ):
        assert words in printed
    assert "ipu.micro_batch_size=" not in printed


def test_a_module_is_predicted_as_the_library_predicts_it(net, capsys):
    asked = ["--input", "2x3x32x32", "optimizer.name=adamw", "ipu.gradient_accumulation=2"]
    assert main(["memory", "torchvision.models:resnet18", *asked]) == 0
    printed = table(capsys.readouterr().out)
    import torchvision

    layout = memory.Layout(
        precision="32.32",
        optimizer=memory.optimizer_memory("adamw"),
        gradient_accumulation=2,
        recomputation="stage",
    )
    model = torchvision.models.resnet18()
    found = memory.predict(model, layout, [torch.zeros(2, 3, 32, 32)]).ipus[0]
    assert printed["in use"] == f"{found.used / memory.MIB:,.0f}"
    assert printed["optimiser state"] == f"{found.terms['optimizer_state'] / memory.MIB:,.0f}"


def test_stages_types_several_inputs_and_inference(net, capsys):
    splits = ["ipu.splits=[body.3]", "ipu.gradient_accumulation=3", "ipu.precision=16.16"]
    assert main(["memory", "own_net.py:Net", "--input", "4x3x64x64", *splits]) == 0
    assert "2 IPUs a replica x 1 replica" in capsys.readouterr().out
    inputs = ["--input", "8x16:int64", "--input", "8x16x8"]
    assert main(["memory", "own_net.py:Tokens", *inputs, "--inference"]) == 0
    printed = capsys.readouterr().out
    assert "Tokens: Tokens (inference), micro-batch 8" in printed
    assert "optimiser state" not in table(printed)


@pytest.mark.parametrize(("percent", "status"), [("0.5", 1), ("99", 0)])
def test_fail_over_gates_by_the_fullest_ipu(net, percent, status, capsys):
    for asked in (["own_net.py:Net", "--input", "4x3x64x64"], ["configs/quickstart.yaml"]):
        assert main(["memory", *asked, "--fail-over", percent]) == status
        printed = capsys.readouterr().out
        assert (f"--fail-over {percent}: the fullest IPU is predicted at" in printed) == bool(
            status
        )


def test_the_power_after_a_modules_norms(net, tmp_path, capsys):
    asked = ["--input", "4x3x16x16", "--images", "8", "--format", "csv", "--out", str(tmp_path)]
    assert main(["analyse", "own_net.py:Net", *asked]) == 0
    assert "Net: 2 normalizations, on noise" in capsys.readouterr().out
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["body.1", "body.4"]
    # Untrained Batch Norm takes the statistics of all images: every channel has mean 0, power 1.
    assert float(rows[0]["sum"]) == pytest.approx(float(rows[0]["mean power"]), rel=1e-6)
    assert float(rows[0]["mean power"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["memory", "own_net.py:Net"], "--input is missing: expected a shape"),
        (["memory", "own_net.py:Nett", "--input", "1x3x8x8"], "has no 'Nett'; it has Net"),
        (["memory", "none.py:Net", "--input", "1x3x8x8"], "there is no file 'none.py'"),
        (["memory", "no_such_package:Net", "--input", "1"], "No module named 'no_such_package'"),
        (["memory", "own_net.py:fails", "--input", "1"], "fails (RuntimeError: no weights here)"),
        (
            ["memory", "own_net.py:nn", "--input", "1"],
            "nn is a module; expected file.py:factory",
        ),
        (
            ["memory", "own_net.py:number", "--input", "1"],
            "makes a int; expected a torch.nn",
        ),
        (["memory", "own_net.py:Net", "--input", "4xa"], "--input 4xa: expected sizes"),
        (["memory", "own_net.py:Net", "--input", "4x3:half8"], "e.g. 4x3x224x224 or 8x128:int64"),
        (["memory", "own_net.py:Net", "--input", "4x5x8x8"], "Net cannot be traced"),
        (["memory", "own_net.py:Net", "--input", "4x3x8x8", "model.norm=ln"], "'model.norm=ln'"),
        (["memory", "own_net.py:Net", "--input", "4x3x8x8", "ipu.micro_batch_size=2"], "--input"),
        (["memory", "own_net.py:Net", "--input", "4x3x8x8", "ipu.chip=mk9"], "'mk9'"),
        (["memory", "own_net.py:Net", "--input", "4x3x8x8", "--norms", "bn"], "--norms: it needs"),
        (["memory", "configs/quickstart.yaml", "--input", "4x3x8x8"], "--input: it needs a module"),
        (["memory", "configs/quickstart.yaml", "--fail-over", "0"], "--fail-over 0.0: expected"),
        (["analyse", "own_net.py:Net"], "--input is missing"),
        (["analyse", "own_net.py:Net", "--input", "4x16:int64"], "expected one input of floats"),
        (["analyse", "own_net.py:Net", "--input", "4x3x8x8", "--norms", "bn"], "--norms: it does"),
        (
            ["analyse", "configs/quickstart.yaml", "--input", "4x3x8x8"],
            "--input: it needs a module",
        ),
    ],
)
def test_what_is_no_module_of_that_kind_is_refused_in_a_sentence(net, arguments, words, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


def test_modules_are_found_beside_their_file(tmp_path, capsys):
    (tmp_path / "beside_net.py").write_text("WIDTH = 7\n")
    (tmp_path / "importing_net.py").write_text(
        "from torch import nn\nimport beside_net\n"
        "def make():\n    return nn.Linear(3, beside_net.WIDTH)\n"
    )
    (tmp_path / "late_net.py").write_text(
        "from torch import nn\n"
        "def make():\n    import beside_late\n    return nn.Linear(3, beside_late.WIDTH)\n"
    )
    (tmp_path / "beside_late.py").write_text("WIDTH = 7\n")
    assert main(["memory", f"{tmp_path}/late_net.py:make", "--input", "2x3"]) == 0
    assert str(tmp_path) not in sys.path
    assert main(["memory", f"{tmp_path}/importing_net.py:make", "--input", "2x3"]) == 0
    assert "make: Linear (training)" in capsys.readouterr().out
