"""Group Norm under ``groupNormStridedChannelGrouping``: channel c in group c mod G."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipu_proxynorm.simulator import Options, identity_loss, inferenceModel, trainingModel
from ipu_proxynorm.simulator.optim import SGD

pytestmark = pytest.mark.simulator


class LoopNorm(nn.Module):
    """Group by group, the channels of each given in full; parameters and names of nn.GroupNorm."""

    def __init__(self, like):
        super().__init__()
        self.groups = like.num_groups
        self.weight = nn.Parameter(like.weight.detach().clone())
        self.bias = nn.Parameter(like.bias.detach().clone())

    def forward(self, x):
        channels = []
        for c in range(x.shape[1]):
            part = x[:, c % self.groups :: self.groups].flatten(1)
            mean, var = part.mean(1), part.var(1, unbiased=False)
            channels.append((x[:, c] - mean[:, None]) / (var + 1e-5).sqrt()[:, None])
        return torch.stack(channels, 1) * self.weight[:, None] + self.bias[:, None]


class Trained(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        y = self.norm(x)
        return y, identity_loss((y * torch.arange(1.0, 13)[:, None]).sin().sum(), "none")


def strided(options=None):
    options = options or Options()
    options._Popart.set("groupNormStridedChannelGrouping", True)
    return options


def norm(groups=4):
    layer = nn.GroupNorm(groups, 12)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_values_and_gradients_are_those_of_a_loop_over_strided_groups(accumulation):
    layer, x = norm(), torch.randn(2 * accumulation, 12, 5)
    reference = Trained(LoopNorm(layer))
    expected, _ = reference(x)
    for part in x.split(2):
        (reference(part)[1] / accumulation).backward()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    options = strided()
    options.Training.gradientAccumulation(accumulation)
    model = trainingModel(Trained(layer), options, SGD(layer.parameters(), lr=1.0))
    y, _ = model(x)
    torch.testing.assert_close(y, expected[-2:])
    model.copyWeightsToHost()
    for name, parameter in layer.named_parameters():
        gradient = getattr(reference.norm, name).grad
        torch.testing.assert_close(
            before[name] - parameter.detach(), gradient, rtol=1e-3, atol=1e-4
        )


def test_in_float16_the_groups_are_strided_too():
    layer, x = norm(), torch.randn(2, 12, 5)
    y = inferenceModel(layer.half(), strided())(x.half())
    torch.testing.assert_close(y.float(), LoopNorm(layer.float())(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("groups", [1, 12])
def test_one_group_or_one_channel_each_are_as_without(groups):
    layer, x = norm(groups), torch.randn(2, 12, 5)
    assert torch.equal(inferenceModel(layer, strided())(x), inferenceModel(layer)(x))


def test_without_the_option_groups_are_contiguous():
    layer, x = norm(), torch.randn(2, 12, 5)
    assert torch.equal(inferenceModel(layer)(x), layer(x))
