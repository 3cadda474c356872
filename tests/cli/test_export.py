"""What a run exports: torch's and the other programs' own loaders read it, or it is refused."""

import functools
import json

import pytest
import safetensors
import timm
import torch
import torchvision

import ipu_proxynorm
from ipu_proxynorm.cli import main
from ipu_proxynorm.config import dump, load
from ipu_proxynorm.files.checkpoint import Checkpoint, Progress, TrainingState, save_checkpoint
from ipu_proxynorm.models import create_model

THEIRS = {"functools": functools, "timm": timm, "torch": torch, "torchvision": torchvision}


def export(capsys, *arguments):
    """Exit status and what was printed."""
    try:
        status = main(["export", *map(str, arguments)])
    except SystemExit as stop:  # argparse
        status = stop.code
    return status, capsys.readouterr()


def write(folder, name, norm, weights, overrides=(), extra=None, files=("last",)):
    """Write checkpoints as a run of that network leaves them."""
    network = [f"model.name={name}", f"model.norm={norm}"]
    layout = ["data.name=synthetic", "ipu.splits=[]", "ipu.gradient_accumulation=1"]
    config = load("configs/quickstart.yaml", [*network, *layout, *overrides])
    state = TrainingState(Progress(epoch=3, call=7), {}, extra=extra or {})
    checkpoint = Checkpoint(3, 0.625, dump(config), weights, state)
    for file in files:
        save_checkpoint(folder / f"{file}.pt", checkpoint)


def trained(folder, name, norm, average=False, **options):
    """Write checkpoints of a network whose weights are away from where they start."""
    model = create_model(name, norm, 10, **options).eval()
    for parameter_name, value in model.state_dict().items():
        if value.dim() == 1:
            positive = parameter_name.endswith(("weight", "running_var"))
            value.uniform_(0.5, 1.5) if positive else value.normal_(0, 0.2)
    weights = model.state_dict()
    double = {name: 2 * value.double() for name, value in weights.items()}
    extra = {"average": {"readings": 3, "values": double}} if average else {}
    files = ("last", "best") if average else ("last",)
    overrides = [f"model.{key}={value}" for key, value in options.items()]
    write(folder, name, norm, weights, overrides, extra, files)
    return model


@pytest.fixture
def proxy(tmp_path):
    """A small run with Proxy Norm and its network."""
    return tmp_path / "run", trained(tmp_path / "run", "resnetv2_8", "gn4+pn", average=True)


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_weights_by_our_names(proxy, tmp_path, capsys, suffix):
    folder, model = proxy
    out = tmp_path / "new" / f"weights.{suffix}"
    assert export(capsys, folder, out)[0] == 0
    if suffix == "safetensors":
        from safetensors.torch import load_file

        weights = load_file(out)
    else:
        weights = torch.load(out, weights_only=True)
    assert_same_tensors(weights, model.state_dict())
    create_model("resnetv2_8", "gn4+pn").load_state_dict(weights)


def test_metadata_beside_safetensors(proxy, tmp_path, capsys):
    folder, _ = proxy
    out = tmp_path / "weights.safetensors"
    status, printed = export(capsys, folder / "best.pt", out)
    assert status == 0
    with safetensors.safe_open(out, "pt") as file:
        about = file.metadata()
    assert json.loads(about.pop("inputs"))["classes"] == list("0123456789")
    assert about.pop("config") == (torch.load(folder / "best.pt")["content"]["config"])
    assert about == {
        "format": "pt",
        "ipu_proxynorm": ipu_proxynorm.__version__,
        "model": "resnetv2_8",
        "norm": "gn4+pn",
        "weights": "raw",
        "epochs": "epoch 3, host call 7 of epoch 4",
        "validation_accuracy": "0.625",
        "dataset": "synthetic",
        "mean": "0.5, 0.5, 0.5",
        "std": "0.2887, 0.2887, 0.2887",
        "num_classes": "10",
        "in_chans": "3",
    }
    for text in ("best.pt (resnetv2_8, gn4+pn, epoch 3, ", "accuracy 62.50%", "mean (0.5, 0.5, "):
        assert text in printed.out


def test_averaged_weights_in_the_network_s_types(proxy, tmp_path, capsys):
    folder, model = proxy
    out = tmp_path / "weights.pt"
    assert export(capsys, folder, out, "--weights", "average", "--which", "best")[0] == 0
    expected = {
        name: (2 * value.double()).to(value.dtype) for name, value in model.state_dict().items()
    }
    assert_same_tensors(torch.load(out, weights_only=True), expected)


@pytest.mark.parametrize(
    ("name", "norm", "provider", "options"),
    [
        ("resnet18", "bn", "torchvision", {}),
        ("resnet18", "bn", "timm", {"norm_eps": 0.01}),
        ("efficientnet_b0", "bn", "torchvision", {}),
        ("efficientnet_b0", "bn", "timm", {}),
        ("resnetv2_18", "bn", "timm", {}),
    ],
)
def test_theirs_compute_the_same(tmp_path, capsys, name, norm, provider, options):
    model = trained(tmp_path, name, norm, **options)
    out = tmp_path / "weights.safetensors"
    status, printed = export(capsys, tmp_path, out, "--as", provider)
    assert status == 0
    with safetensors.safe_open(out, "pt") as file:
        call = file.metadata()["network"]
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert f"network: {call}" in printed.out
    theirs = eval(call, THEIRS).eval()
    theirs.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(images), theirs(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


REFUSED_AS = {
    "Proxy Norm": ("resnet18", "gn4+pn", "torchvision", [], ["Batch Norm, not gn4+pn", "Proxy N"]),
    "Layer Norm": ("resnet18", "ln", "timm", [], ["timm's resnet18 has Batch Norm", "not ln"]),
    "not theirs": ("resnetv2_18", "bn", "torchvision", [], ["has no resnetv2_18; it has resnet18"]),
    "width": ("resnet18", "bn", "timm", ["model.width=32"], ["has width=64, not 32"]),
    "activation": (
        "resnet18", "bn", "torchvision", ["model.activation=silu"], ["act_layer=relu, not silu"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_AS)
def test_what_is_not_theirs_is_refused(tmp_path, capsys, case):
    name, norm, provider, options, parts = REFUSED_AS[case]
    weights = {"conv1.weight": torch.zeros(1, 3, 1, 1), "fc.weight": torch.zeros(10, 1)}
    write(tmp_path, name, norm, weights, options)
    status, printed = export(capsys, tmp_path, tmp_path / "out.pt", "--as", provider)
    assert status == 2
    assert printed.err.count("\n") == 1
    for part in [f"--as {provider}: ", *parts, "without --as"]:
        assert part in printed.err
    assert not (tmp_path / "out.pt").exists()


def test_wrong_input_gets_one_sentence(proxy, tmp_path, capsys):
    folder, _ = proxy
    (tmp_path / "empty").mkdir()
    out = tmp_path / "weights.pt"
    bare = tmp_path / "bare"
    trained(bare, "resnetv2_8", "bn")
    cases = [
        ([folder, tmp_path / "weights.bin"], ["'.bin'", ".pt, .pth, .safetensors"]),
        ([tmp_path / "none", out], ["none'", "no such folder or file", "runs/quickstart"]),
        ([tmp_path / "empty", out], ["empty'", "no checkpoint in it", "finished an epoch"]),
        ([folder, out, "--which", "last-3"], ["--which last-3", "has last, best"]),
        ([folder / "last.pt", out, "--which", "best"], ["is one checkpoint"]),
        ([bare, out, "--weights", "average"], ["no averaged weights", "--weights raw"]),
        ([folder / "last.pt", folder / "last.pt", "--overwrite"], ["is the checkpoint itself"]),
        ([folder, folder / "last.pt" / "out.pt"], ["out.pt' cannot be written"]),
    ]
    for arguments, parts in cases:
        status, printed = export(capsys, *arguments)
        assert status == 2, arguments
        assert printed.err.count("\n") == 1
        for part in parts:
            assert part in printed.err, (arguments, printed.err)
    assert not out.exists()


def test_nothing_is_overwritten_unasked(proxy, tmp_path, capsys):
    folder, _ = proxy
    out = tmp_path / "weights.pt"
    out.write_text("mine")
    status, printed = export(capsys, folder, out)
    assert status == 2
    assert "exists: choose another name, or pass --overwrite" in printed.err
    assert out.read_text() == "mine"
    assert export(capsys, folder, out, "--overwrite")[0] == 0
    assert len(torch.load(out, weights_only=True)) > 10
    assert {path.name for path in tmp_path.iterdir()} == {"run", "weights.pt"}


def test_of_a_damaged_run_the_good_checkpoint_is_named(proxy, tmp_path, capsys):
    folder, _ = proxy
    content = bytearray((folder / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "last.pt").write_bytes(content)
    status, printed = export(capsys, folder, tmp_path / "weights.pt")
    assert status == 2
    assert "damaged" in printed.err
    assert "best.pt' (epoch 3, host call 7 of epoch 4) is good: use it with --checkpoint best" in (
        printed.err
    )
    assert export(capsys, folder, tmp_path / "weights.pt", "--checkpoint", "best")[0] == 0
