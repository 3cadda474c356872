"""Automatic loss scaling: what it watches, when it changes the scale, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


class Chain(torch.nn.Module):
    """weight x, times 100, times 1/100, summed: inside, gradients are 100 times the loss's."""

    def __init__(self, weights=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=weights))

    def forward(self, x):
        return poptorch.identity_loss((self.weight * x).to(x.dtype) * 0.01 * 100.0, "sum")


def factors(model, x, calls=5, accumulation=1, replicas=1, **settings):
    """The factors on top of the loss scaling, before each call."""
    options = poptorch.Options().replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation).setAutomaticLossScaling(True)
    for name, value in settings.items():
        options._Popart.set(f"automaticLossScalingSettings.{name}", value)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=16.0)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor.compile(x)
    seen = []
    for _ in range(calls):
        seen.append(float(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"]))
        executor(x)
    return seen


@pytest.mark.parametrize("weights", [torch.float16, torch.float32])
def test_float16_gradients_of_activations_count_where_the_weights_are_float32(weights):
    """100 times the scale passes an eighth of float16's range, 8188, at a scale of 128."""
    x = torch.full((2,), 0.5).half()
    assert factors(Chain(weights), x) == [1, 2, 4, 8, 4]


def test_overflows_count():
    """100 x 16 x 64 is no float16 number."""
    x = torch.full((2,), 0.5).half()
    assert factors(Chain(), x, 8, binEdgeLocation=1.0) == [1, 2, 4, 8, 16, 32, 64, 32]


def test_gradients_that_are_no_numbers_count():
    class Invalid(Chain):
        def forward(self, x):
            return poptorch.identity_loss(torch.sqrt(super().forward(x) * x * 0), "sum")

    assert factors(Invalid(), torch.zeros(2).half(), 3) == [1, 0.5, 0.25]


@pytest.mark.parametrize(("accumulation", "replicas"), [(4, 1), (1, 4), (2, 2)])
def test_all_micro_batches_count(accumulation, replicas):
    """One of four micro-batches has large gradients, in one of its tensors."""
    x = torch.tensor([0.5, 0.5] * 3 + [0.5, 2000.0]).half()
    model = Chain(torch.float16)
    assert factors(model, x, 3, accumulation, replicas) == [1, 0.5, 0.25]
    model.destroy()
    assert factors(
        model, x, 3, accumulation, replicas, thresholdUpperCountProportion=0.5
    ) == [1, 2, 4]  # fmt: skip


def test_the_scale_changes_in_the_first_step_of_each_period():
    x = torch.full((2,), 0.5).half()
    assert factors(Chain(), x, 6, updatePeriod=3) == [1, 2, 2, 2, 4, 4]


def test_a_model_without_float16_gradients_is_refused():
    with pytest.raises(poptorch.Error, match=r"No tracked gradient tensors of type fp16") as caught:
        factors(Chain(), torch.ones(2))
    assert "setAutomaticLossScaling(False)" in caught.value.message
