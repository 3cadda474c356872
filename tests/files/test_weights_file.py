"""A run starts from other programs' weights: the same outputs, or one sentence."""

import pickle

import pytest
import safetensors.torch
import torch
import torchvision

from ipu_proxynorm.config import dump, load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import Checkpoint, Progress, TrainingState, save_checkpoint
from ipu_proxynorm.files.weights import write_weights
from ipu_proxynorm.models import create_model
from ipu_proxynorm.run.run import build, load_origin

SMALL = ["data.name=synthetic", "ipu.splits=[]", "ipu.gradient_accumulation=1"]


def starting(origin, name="resnet8", norm="gn4", *overrides):
    """Return the run that starts from these weights."""
    network = [f"model.name={name}", f"model.norm={norm}"]
    keys = [*SMALL, *network, f"training.init_from={origin}", *overrides]
    return build(load("configs/quickstart.yaml", keys))


@pytest.fixture
def network():
    """A network of ours whose weights are not those that a run draws."""
    torch.manual_seed(7)
    return create_model("resnet8", "gn4", 10)


WRITERS = {
    "weights.pt": torch.save,
    "weights.pth": lambda weights, path: torch.save(
        weights, path, _use_new_zipfile_serialization=False
    ),
    "weights.safetensors": safetensors.torch.save_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_weights_by_our_names(tmp_path, network, name):
    WRITERS[name](network.state_dict(), tmp_path / name)
    run = starting(tmp_path / name)
    assert run.origin == f"weights in {tmp_path / name}"
    for key, value in network.state_dict().items():
        assert torch.equal(run.model.state_dict()[key], value), key


def test_half_of_the_precision(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    run = starting(tmp_path / "weights.pt", "resnet8", "gn4", "ipu.precision=16.16")
    assert torch.equal(run.model.fc.weight, network.fc.weight.half())


def test_torchvision_s_weights(tmp_path):
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    run = starting(f"torchvision:{tmp_path / 'theirs.pth'}", "resnet18", "bn")
    assert run.origin == f"torchvision weights in {tmp_path / 'theirs.pth'}"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs(images), run.model.eval()(images)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, network, capsys):
    weights = network.state_dict()
    torch.save(weights, tmp_path / "good.pt")
    safetensors.torch.save_file(weights, tmp_path / "good.safetensors")
    said = {"model": "resnet8", "norm": "gn4"}
    safetensors.torch.save_file(weights, tmp_path / "said.safetensors", said)
    torch.save(weights, tmp_path / "flipped.pt")
    flipped(tmp_path / "flipped.pt")
    safetensors.torch.save_file(weights, tmp_path / "cut.safetensors")
    cut(tmp_path / "cut.safetensors")
    torch.save({"net": weights, "epoch": 3}, tmp_path / "nested.pt")
    torch.save({"w": Malicious()}, tmp_path / "code.pt")
    (tmp_path / "legacy.pt").write_bytes(pickle.dumps({"w": Malicious()}))
    strided = {**weights, "bn1.channel_grouping": torch.tensor(1)}
    torch.save(strided, tmp_path / "strided.pt")
    cases = [
        ("none.pt", "gn4", ["none.pt'", "no such"]),
        ("timm:none.pt", "gn4", ["none.pt'", "no such file"]),
        ("none.safetensors", "gn4", ["none.safetensors'", "no such file"]),
        ("flipped.pt", "gn4", ["flipped.pt'", "damaged"]),
        ("cut.safetensors", "gn4", ["cut.safetensors'", "truncated, damaged or no safetensors"]),
        ("nested.pt", "gn4", ["nested.pt'", "'net', 'epoch'", "state_dict"]),
        ("timm:nested.pt", "gn4", ["nested.pt'", "'net', 'epoch'", "state_dict"]),
        ("code.pt", "gn4", ["code.pt'", "not executed"]),
        ("legacy.pt", "gn4", ["legacy.pt'"]),
        ("timm:legacy.pt", "gn4", ["legacy.pt'", "not executed"]),
        ("good.pt", "bn", ["good.pt: the weights do not fit this ResNet: ", "27 missing (bn1.run"]),
        (
            "good.safetensors",
            "gn4+pn",
            ["5 left over", "8 missing (bn1.proxy", "create the model with the norm"],
        ),
        ("said.safetensors", "gn8", ["another network", "model.norm=gn4 instead of gn8"]),
        ("strided.pt", "gn4", ["strided.pt: the weights do not fit", "is strided"]),
    ]
    runs = {norm: starting("null", "resnet8", norm) for norm in {norm for _, norm, _ in cases}}
    for origin, norm, parts in cases:
        provider, colon, file = origin.rpartition(":")
        with pytest.raises(UserError) as caught:
            load_origin(runs[norm], f"{provider}{colon}{tmp_path / file}")
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message, (origin, message)
    assert "executed\n" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def of_seven_classes(tmp_path_factory):
    """Weights of a network of 7 classes in every kind of file, and a run's checkpoint of them."""
    folder = tmp_path_factory.mktemp("seven")
    run = starting("null")
    network = create_model("resnet8", "gn4", 7)
    weights = network.state_dict()
    average = {"readings": 1, "values": {name: 2 * value for name, value in weights.items()}}
    for name, extra in (("last", {}), ("averaged", {"average": average})):
        state = TrainingState(Progress(1), {}, extra=extra)
        checkpoint = Checkpoint(1, None, dump(run.config), weights, state)
        save_checkpoint(folder / f"{name}.pt", checkpoint)
    write_weights(folder / "exported.safetensors", weights, {"model": "resnet8", "norm": "gn4"})
    write_weights(folder / "exported.pt", weights, {})
    torch.save({"state_dict": weights, "epoch": 3}, folder / "wrapped.pt")
    return folder, weights


@pytest.mark.parametrize(
    "name", ["last.pt", "averaged.pt", "exported.safetensors", "exported.pt", "wrapped.pt"]
)
def test_the_classifier_is_drawn_anew_and_all_else_loaded(of_seven_classes, name):
    folder, weights = of_seven_classes
    with pytest.raises(UserError) as caught:
        starting(folder / name)
    for part in (f"training.init_from={folder / name}: ", "7 classes", "10", "training.new_head=t"):
        assert part in str(caught.value)
    drawn = starting("null").model.state_dict()
    run = starting(folder / name, "resnet8", "gn4", "training.new_head=true")
    factor = 2 if name == "averaged.pt" else 1
    for key, value in run.model.state_dict().items():
        expected = drawn[key] if key.startswith("fc.") else factor * weights[key]
        assert torch.equal(value, expected), key
    assert run.origin.endswith(", with a new classifier")


def test_a_new_classifier_needs_weights_for_the_rest():
    with pytest.raises(UserError, match=r"training.new_head=True: without training.init_from"):
        starting("null", "resnet8", "gn4", "training.new_head=true")
