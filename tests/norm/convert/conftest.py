"""Networks with every way to call an activation, and what is asked of converted ones."""

import pytest
import torch
from torch import nn


class Shared(nn.Module):
    """A block whose ReLU is one module, called also after the addition, as torchvision's."""

    def __init__(self, act=None):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu = act or nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv(x)))
        return self.relu(self.bn2(self.conv(y)) + x)


class Functional(nn.Module):
    """One way or another to call an activation without a module."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), way

    def forward(self, x):
        return self.way(self.norm(self.conv(x))).mean((2, 3))


class Branching(Functional):
    """Its forward depends on a value."""

    def forward(self, x):
        y = self.way(self.norm(self.conv(x)))
        return y.mean((2, 3)) if float(y.detach().mean()) > -1e9 else y


@pytest.fixture
def shared():
    """Return the class of a block whose ReLU is called twice."""
    return Shared


@pytest.fixture
def functional():
    """Return the class of a network that calls an activation as it is told."""
    return Functional


@pytest.fixture
def branching():
    """Return the class of one that cannot be traced."""
    return Branching


@pytest.fixture
def scramble():
    def function(model):
        """Give every parameter and running statistic a value that shows where it is used."""
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.data.add_(torch.rand_like(tensor) * 0.05)
        return model

    return function


@pytest.fixture
def outputs():
    def function(model, x, training):
        torch.manual_seed(1)  # for what drops
        return model.train(training)(x)

    return function


@pytest.fixture
def lines():
    def function(report):
        return {line.name: line for line in report.norms}

    return function
