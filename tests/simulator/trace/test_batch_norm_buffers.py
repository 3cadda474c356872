"""Batch Norm's running statistics: written in training only, per replica."""

import copy

import pytest
import torch

from ipu_proxynorm.simulator import Options, identity_loss, inferenceModel, trainingModel
from ipu_proxynorm.simulator.optim import SGD

pytestmark = pytest.mark.simulator


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x, labels=None):
        y = self.norm(x)
        return y if labels is None else torch.nn.functional.cross_entropy(y, labels)


def test_inference_on_replicas_reads_them():
    model = Classifier().eval()
    model.norm.running_mean.fill_(2.0)
    x = torch.randn(4, 3)
    executor = inferenceModel(model, Options().replicationFactor(2))
    torch.testing.assert_close(executor(x), (x - 2) / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("options", [Options(), Options().broadcastBuffers(False)])
def test_training_on_replicas_writes_them_each_its_own(options):
    # PopTorch does not count what Batch Norm writes among the buffers that it would broadcast.
    model, x = Classifier(), torch.randn(4, 3)
    executor = trainingModel(model, options.replicationFactor(2))
    executor(x, torch.tensor([0, 1, 2, 0]))
    # The host sees the first replica's.
    torch.testing.assert_close(model.norm.running_mean + 0, 0.1 * x[:2].mean(0))


class Deep(torch.nn.Module):
    """Batch Norms of many sizes: that one's statistics stand for another's does not stay unseen."""

    def __init__(self):
        super().__init__()
        widths = [3, 64, 8, 256, 16, 512, 4]
        layers = []
        for before, after in zip(widths, widths[1:]):
            layers += [torch.nn.Conv2d(before, after, 1, bias=False), torch.nn.BatchNorm2d(after)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x):
        return identity_loss(self.layers(x).float().square().mean(), "none")


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("statistics", ["half", "float"])
def test_float16_statistics_move_as_in_float32(statistics, stochastic):
    torch.manual_seed(0)
    plain, x = Deep(), torch.randn(8, 3, 4, 4)
    model = copy.deepcopy(plain).half()
    for norm in model.layers[1::2]:
        getattr(norm, statistics)()
    options = Options()
    options.Training.gradientAccumulation(2)
    options.Precision.enableStochasticRounding(stochastic)
    for half in x.chunk(2):
        plain(half)
    trainingModel(model, options, SGD(model.parameters(), lr=0.0))(x.half())
    for norm, expected in zip(model.layers[1::2], plain.layers[1::2]):
        assert norm.running_var.dtype == getattr(torch, statistics.replace("half", "float16"))
        for name in ("running_mean", "running_var"):
            found = getattr(norm, name).float()
            torch.testing.assert_close(found, getattr(expected, name), rtol=2e-3, atol=2e-3)
