"""Operators of several micro-batches against one after the other, and what is refused."""

from __future__ import annotations

import pytest
import torch

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator.device import together

pytestmark = pytest.mark.simulator


class Applied(torch.nn.Module):
    """A function of the features (N, 6) of a layer, with the sum of what it returns as the loss."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 6)
        self.register_buffer("state", torch.zeros(6))
        self.function = function

    def forward(self, x):
        out = self.function(self, self.layer(x))
        return out, poptorch.identity_loss(out.sin().mean(), "none")


def trained(monkeypatch, function, images, size=3):
    """Return outputs, weights and why micro-batches were computed apart, after two calls."""
    monkeypatch.setenv("POPTORCH_SIM_TOGETHER", images)
    model = Applied(function)
    options = poptorch.Options().randomSeed(3).outputMode(poptorch.OutputMode.All)
    options.replicationFactor(2).broadcastBuffers(False)
    options.Training.gradientAccumulation(3)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(6 * size, 4, generator=torch.Generator().manual_seed(1))
    outputs = [executor(x) for _ in range(2)]
    return (outputs, dict(model.state_dict())), executor._device.apart


FUNCTIONS = {
    "transpose": lambda m, y: (y.t() @ y).t(),
    "stack": lambda m, y: torch.stack([y, y * 2], 1).flatten(1),
    "concatenate images": lambda m, y: torch.cat([y, y.flip(0)]),
    "roll images": lambda m, y: y * 0.3 + y.roll(1, 0) * 0.7,
    "statistics of the micro-batch": lambda m, y: (y - y.mean(0)) / (y.var(0) + 1e-3).sqrt(),
    "softmax over images": lambda m, y: y.softmax(0),
    "one image": lambda m, y: y[0] * y[-1],
    "sort": lambda m, y: y.sort(1).values,
    "gather": lambda m, y: y.gather(1, torch.arange(3).expand(y.shape[0], 3)),
    "product by weights that differ": lambda m, y: m.layer.weight @ y.mean(0)[:4],
    "weights with a gradient of their own": lambda m, y: y + m.layer.weight.square().sum(),
    "in place": lambda m, y: y.mul(2).add_(1).mul_(y),
    "a part in place": lambda m, y: _part(y),
    "dropout": lambda m, y: torch.nn.functional.dropout(y, 0.4, training=True),
    "noise": lambda m, y: y * torch.rand(y.shape[0], 1) + torch.randn(6),
    "bernoulli": lambda m, y: y * torch.empty_like(y).bernoulli_(0.5),
    "drawn by values": lambda m, y: y * torch.bernoulli(y.detach().sigmoid()),
    "select": lambda m, y: torch.where(y > 0, y, y.exp() - 1),
    "no images left": lambda m, y: y.sum() * y.amax(),
    "a buffer of its own": lambda m, y: y + m.state.add_(y.detach().mean(0)),
    "norm": lambda m, y: torch.nn.functional.layer_norm(y, (6,)),
    "matrix of each image": lambda m, y: (y[:, :, None] @ y[:, None, :]).mean(2),
    "largest": lambda m, y: y * (y.argmax(1, keepdim=True) + y.argmin(1)[:, None]),
    "class losses": lambda m, y: y * torch.nn.functional.cross_entropy(y, _labels(y)),
    "summed class losses": lambda m, y: (
        y * torch.nn.functional.cross_entropy(y, _labels(y), reduction="sum", ignore_index=2)
    ),
    "a gradient in parts": lambda m, y: y * _parts(m.layer.bias, y),
    "expand": lambda m, y: y.mean(0, keepdim=True).expand(4, 6) * 2,
}
APART = {"a part in place", "drawn by values", "a buffer of its own"}


def _labels(y):
    return (y.detach() * 7).long().abs()[:, 0] % 6


def _parts(bias, y):
    first, second, _ = (bias * y.mean(0)).split([1, 3, 2])
    return torch.cat([second, first, first, second[:1]])


def _part(y):
    y = y.mul(2)
    y[:, 1:3] += 1
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_together_equal_one_after_the_other(monkeypatch, name, size):
    if size == 1 and name == "statistics of the micro-batch":
        pytest.skip("one image has no variance")
    alone, _ = trained(monkeypatch, FUNCTIONS[name], "0", size)
    images = "" if size == 1 else "12"  # in one go; in groups of 3
    given, apart = trained(monkeypatch, FUNCTIONS[name], images, size)
    assert bool(apart) == (name in APART), apart
    torch.testing.assert_close(given, alone, rtol=1e-4, atol=1e-5)


def test_what_is_not_a_number_of_images_is_refused(monkeypatch):
    with pytest.raises(poptorch.Error, match="POPTORCH_SIM_TOGETHER=many"):
        trained(monkeypatch, FUNCTIONS["select"], "many")


def test_inference_takes_device_iterations_together(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU())
    x = torch.randn(24, 4)
    options = poptorch.Options().deviceIterations(4).replicationFactor(2)
    executor = poptorch.inferenceModel(model.eval(), options)
    torch.testing.assert_close(executor(x), model(x))
    assert executor._device.apart == ""
    assert executor._device.at_once >= 8


@pytest.mark.parametrize(("memory", "expected"), [(2**31, 16), (6 * 2**20, 6)])
def test_as_many_at_once_as_caches_and_memory_hold(monkeypatch, memory, expected):
    class Two(torch.nn.Module):
        """Returns two tensors of 512 KiB for a micro-batch: 16 of each are 8 MiB."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1024)

        def forward(self, x):
            y = self.layer(x)
            return y, y.exp()

    monkeypatch.setattr(together, "MOST_MEMORY", memory)
    options = poptorch.Options().deviceIterations(32)
    executor = poptorch.inferenceModel(Two().eval(), options)
    executor(torch.randn(32 * 128, 4))
    assert executor._device.at_once == expected
    # The program of one micro-batch is made only where its memory has to be counted.
    assert ("executable" in vars(executor._device.program)) == (expected == 6)
