"""A norm, a network, an optimiser and a data set of one's own, as docs/extending.md says."""

import dataclasses

import pytest
import torch
from torch import nn

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.cli import main
from ipu_proxynorm.config import OPTIMIZERS, OptimizerKind, documentation
from ipu_proxynorm.data import DATASETS, DatasetSpec, image_data
from ipu_proxynorm.data.image_set import TensorImages
from ipu_proxynorm.models import MODELS, Network
from ipu_proxynorm.models.factory import Architecture
from ipu_proxynorm.norm import KINDS, NORM_UNITS, NormKind, create_norm_act, resolve_activation
from ipu_proxynorm.run.optimizer import BUILDERS

pytestmark = pytest.mark.simulator
STATISTICS = ((0.25, 0.75), (0.125, 0.25))


class RootMeanSquare(nn.Module):
    """x over the root of its mean square, channel by channel scaled."""

    def __init__(self, channels, activation, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.activation = resolve_activation(activation)
        self.eps = eps

    def forward(self, x):
        power = (x * x).mean((1, 2, 3), keepdim=True)
        return self.activation(x / torch.sqrt(power + self.eps) * self.weight.view(1, -1, 1, 1))


def root_mean_square(spec, channels, activation, apply_act, options, factory):
    return RootMeanSquare(channels, activation if apply_act else "identity", options.eps)


class Small(Network):
    def __init__(self, norm, num_classes, in_chans, act_layer="relu", depth=2):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(create_norm_act(norm, 8, act_layer) for _ in range(depth)))
        self.fc = nn.Linear(8, num_classes)

    def split_points(self):
        return ["blocks", "fc"]

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def stripes(request):
    """Two classes of two-channel images: stripes along, and across."""
    size = request.image_size or 12
    ramp = (torch.arange(size) % 2 * 255).to(torch.uint8)
    along = ramp.expand(2, size, size)
    images = torch.stack([along, along.transpose(1, 2)] * 16)
    labels = torch.arange(32) % 2
    parts = (TensorImages(images, labels), TensorImages(images[:8], labels[:8]))
    return image_data("stripes", parts, 2, request, 12, "none", STATISTICS)


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setitem(KINDS, "rms", NormKind(why_no_proxy="its scale is the whole image's"))
    monkeypatch.setitem(NORM_UNITS, "rms", root_mean_square)
    monkeypatch.setitem(MODELS, "small", Architecture(Small, {"depth": 2}, 12, 1, ()))
    monkeypatch.setitem(OPTIMIZERS, "heavy", OptimizerKind({"momentum": 0.5}, "SGD, mine"))
    monkeypatch.setitem(
        BUILDERS,
        "heavy",
        lambda groups, scaling, arguments: poptorch.optim.SGD(groups, **arguments),
    )
    monkeypatch.setitem(DATASETS, "stripes", DatasetSpec(stripes, 2, 2, 12, STATISTICS))


@pytest.fixture
def config(mine, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
        name: mine
        runs: {tmp_path}
        model: {{name: small, norm: rms}}
        data: {{name: stripes}}
        ipu: {{micro_batch_size: 4, gradient_accumulation: 3, splits: [fc]}}
        optimizer: {{name: heavy, lr: 0.05}}
        training: {{epochs: 1}}
        """
    )
    return str(path)


def test_each_smokes_is_predicted_planned_trained_and_exported(config, tmp_path, capsys):
    assert main(["train", config, "--smoke"]) == 0
    assert main(["memory", config]) == 0
    assert "small (rms)" in capsys.readouterr().out
    assert main(["plan", config, "--ipus", "1"]) == 0
    assert main(["train", config]) == 0
    assert main(["validate", str(tmp_path / "mine")]) == 0
    out = tmp_path / "out.pt"
    assert main(["export", str(tmp_path / "mine"), str(out)]) == 0
    assert out.exists()


def test_each_is_named_where_choices_are(config, capsys):
    (key,) = (key for key in documentation() if key.name == "optimizer.name")
    assert "heavy (SGD, mine)" in key.text
    for override, words in (
        ("model.norm=rmx", "rms"),
        ("model.norm=rms+pn", "its scale is the whole image's"),
        ("model.name=smal", "small"),
        ("optimizer.name=heavi", "heavy"),
        ("data.name=stripe", "stripes"),
    ):
        assert main(["train", config, override]) == 2
        assert words in capsys.readouterr().err


def test_a_memory_prediction_knows_the_state_of_ones_own_optimiser(mine):
    from ipu_proxynorm.memory import read_optimizer

    class Mine(poptorch.optim.AdamW):
        pass

    parameters = [nn.Parameter(torch.zeros(2))]
    found = read_optimizer(Mine(parameters))
    expected = read_optimizer(poptorch.optim.AdamW(parameters))
    assert dataclasses.replace(found, name="") == dataclasses.replace(expected, name="")
