"""Precisions: types on the device, and training in each of them close to float32's."""

import pytest
import torch
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import PRECISIONS, Classification, precision_of, set_weights_type
from ipu_proxynorm.norm import Linear, create_norm_act


class Network(nn.Module):
    """Convolution, norm and classifier; keeps the types that it met while it compiled."""

    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = create_norm_act(norm, 8)
        self.fc = Linear(8, 3)
        self.types = []

    def forward(self, x):
        for layer in (self.conv, self.norm):
            self.types.append(x.dtype)
            x = layer(x)
        self.types.append(x.dtype)
        logits = self.fc(x.mean((2, 3)))
        self.types.append(logits.dtype)
        return logits


def train(name, norm, steps=15):
    """Losses and the network after some steps on two micro-batches each, in one precision."""
    torch.manual_seed(3)
    network = Network(norm)
    precision = precision_of(name)
    set_weights_type(network, precision)
    program = Classification(network, (0.5, 0.5), (0.3, 0.3), activations=precision.activations)
    options = poptorch.Options().outputMode(poptorch.OutputMode.Sum)
    options.Training.gradientAccumulation(2)
    options.Precision.setPartialsType(torch.float32)
    optimizer = poptorch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, loss_scaling=64.0)
    executor = poptorch.trainingModel(program, options, optimizer)
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(12) % 3
    images = torch.randint(60, (12, 2, 5, 5), generator=generator, dtype=torch.uint8)
    images += (labels * 60).to(torch.uint8).view(-1, 1, 1, 1)
    losses = [float(executor(images, labels)[0]) / 2 for _ in range(steps)]
    executor.copyWeightsToHost()
    return losses, network


@pytest.mark.parametrize("norm", ["gn4+pn", "ln", "bn"])
@pytest.mark.parametrize("name", ["16.32", "16.16"])
def test_training_in_float16_follows_float32(name, norm):
    losses, network = train(name, norm)
    exact, _ = train("32.32", norm)
    assert set(network.types) == {torch.float16}
    weights = {p.dtype for p in network.parameters()}
    assert weights == {PRECISIONS[name].weights}
    assert exact[-1] < exact[0] - 0.1
    assert losses != exact
    assert losses == pytest.approx(exact, abs=0.03)


def test_float32_weights_take_updates_that_float16_ones_round_away():
    def moved(name):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        set_weights_type(layer, precision_of(name))

        class Program(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return poptorch.identity_loss(self.layer(x), reduction="mean")

        optimizer = poptorch.optim.SGD(layer.parameters(), lr=1e-4)
        executor = poptorch.trainingModel(Program(), poptorch.Options(), optimizer)
        for _ in range(20):
            executor(torch.ones(1, 1, dtype=torch.float16))
        return 1 - float(layer.weight.detach())

    assert moved("16.32") == pytest.approx(20e-4, rel=1e-3)
    assert moved("16.16") == 0


def test_an_unknown_precision_is_named():
    with pytest.raises(UserError, match=r"ipu.precision '16.23' is unknown.*'16.32'"):
        precision_of("16.23")
