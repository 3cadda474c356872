"""Whole programs, rewritten and together, against what was recorded and against a float64 loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.norm import create_norm_act, share_moments
from ipu_proxynorm.simulator.trace.optimize import selects

pytestmark = pytest.mark.simulator

SPECS = ("bn", "gn2", "gn2+pn", "ln+pn", "none")
ACTIVATIONS = ("relu", "silu", "relu6", "leaky_relu", "hardswish")


class Network(torch.nn.Module):
    """Convolutions with norms, a shortcut, dropout and a gate, and a head; (N, 3, 8, 8)."""

    def __init__(self, layers, dropout, shared, half):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Conv2d(8 if i else 3, 8, 3, padding=1, groups=1 if i < 2 else 8),
                create_norm_act(spec, 8, act),
            )
            for i, (spec, act) in enumerate(layers)
        )
        if shared and any("pn" in spec for spec, _ in layers):
            share_moments(*self.layers)
        self.dropout = torch.nn.Dropout(dropout)
        self.gate = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 5)
        self.half() if half else self
        torch.manual_seed(1)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3)

    def forward(self, x, target):
        for i, layer in enumerate(self.layers):
            x = layer(x) + x if i else layer(x)
        pooled = x.mean((2, 3))
        x = x * torch.sigmoid(self.gate(pooled))[:, :, None, None]
        logits = self.head(self.dropout(x.amax((2, 3)) + pooled)).float()
        loss = torch.nn.functional.cross_entropy(logits, target)
        return logits, loss


def trained(monkeypatch, environment, network, half, accumulation=1, replicas=1, calls=2):
    """Return outputs and weights after some calls of a network in an environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    model = Network(*network, half)
    options = poptorch.Options().randomSeed(7).replicationFactor(replicas)
    options.broadcastBuffers(False)
    options.outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(accumulation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    executor = poptorch.trainingModel(model, options, optimizer)
    generator = torch.Generator().manual_seed(2)
    count = 2 * accumulation * replicas
    outputs = []
    apart = environment["POPTORCH_SIM_OPTIMIZE"] == "0" or half or count == 2
    for _ in range(calls):
        x = torch.randn(count, 3, 8, 8, generator=generator)
        target = torch.randint(5, (count,), generator=generator)
        outputs.append(executor(x.half() if half else x, target))
    assert bool(executor._device.apart) == apart, executor._device.apart
    return outputs, {name: value.clone() for name, value in model.state_dict().items()}


def looped(network, accumulation, replicas, calls=2):
    """Return what plain PyTorch computes in float64, micro-batch by micro-batch."""
    model = Network(*network, False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    micro_batches = accumulation * replicas
    outputs = []
    for _ in range(calls):
        x = torch.randn(2 * micro_batches, 3, 8, 8, generator=generator).double()
        target = torch.randint(5, (2 * micro_batches,), generator=generator)
        optimizer.zero_grad()
        found = [model(a, b) for a, b in zip(x.split(2), target.split(2))]
        (sum(loss for _, loss in found) / micro_batches).backward()
        optimizer.step()
        logits, losses = (
            torch.cat([v.detach().float().reshape(-1) for v in c]) for c in zip(*found)
        )
        outputs.append([logits, losses])
    return outputs, {name: value.detach().float() for name, value in model.named_parameters()}


networks = st.tuples(
    st.lists(
        st.tuples(st.sampled_from(SPECS), st.sampled_from(ACTIVATIONS)), min_size=1, max_size=3
    ),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)


@settings(max_examples=20)
@given(network=networks, half=st.booleans())
def test_rewritten_programs_compute_the_same_bits(network, half):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(selects, "_FEW", 1)
        plain = trained(monkeypatch, {"POPTORCH_SIM_OPTIMIZE": "0"}, network, half)
        given = trained(monkeypatch, {"POPTORCH_SIM_OPTIMIZE": "1"}, network, half)
    torch.testing.assert_close(given, plain, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=15)
@given(
    network=networks,
    accumulation=st.integers(1, 3),
    replicas=st.integers(1, 2),
    images=st.sampled_from(["", "4", "6"]),
)
def test_micro_batches_together_give_what_they_give_alone(network, accumulation, replicas, images):
    sizes = {"accumulation": accumulation, "replicas": replicas}
    with pytest.MonkeyPatch.context() as monkeypatch:
        alone = trained(monkeypatch, {"POPTORCH_SIM_OPTIMIZE": "0"}, network, False, **sizes)
        environment = {"POPTORCH_SIM_OPTIMIZE": "1", "POPTORCH_SIM_TOGETHER": images}
        given = trained(monkeypatch, environment, network, False, **sizes)
    torch.testing.assert_close(given, alone, rtol=2e-3, atol=2e-4)
    if network[1] == 0:  # of what is drawn the loop knows nothing
        outputs, parameters = looped(network, accumulation, replicas)
        flat = [[value.reshape(-1) for value in output] for output in given[0]]
        torch.testing.assert_close(flat, outputs, rtol=2e-3, atol=2e-4)
        ours = {name: given[1][name] for name in parameters}
        torch.testing.assert_close(ours, parameters, rtol=2e-3, atol=2e-4)
