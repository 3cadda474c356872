"""One weight update equals the plain PyTorch loop, however its batch is divided."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from ipu_proxynorm.simulator import Options, OutputMode, inferenceModel, trainingModel

pytestmark = pytest.mark.simulator

DIVISIONS = [(4, 1, 2), (2, 2, 2), (1, 1, 8), (1, 4, 2)]


class Net(torch.nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = norm
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x, target=None):
        logits = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits if target is None else (logits, F.cross_entropy(logits, target))


def options_for(replicas, accumulation):
    options = Options().replicationFactor(replicas).broadcastBuffers(False)
    options.Training.gradientAccumulation(accumulation)
    return options


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def plain_loop(model, x, target, steps):
    optimizer = sgd(model)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x, target)[1].backward()
        optimizer.step()
    return model


def trained(model, x, target, division, steps):
    replicas, accumulation, _ = division
    executor = trainingModel(model, options_for(replicas, accumulation), sgd(model))
    for _ in range(steps):
        executor(x, target)
    return model


@pytest.mark.parametrize("division", DIVISIONS)
def test_weights_do_not_depend_on_how_the_batch_is_divided(division):
    model = Net(torch.nn.GroupNorm(2, 4))
    x, target = torch.randn(8, 3, 6, 6), torch.randint(0, 3, (8,))
    expected = plain_loop(copy.deepcopy(model).double(), x.double(), target, 3).state_dict()

    actual = trained(model, x, target, division, 3).state_dict()

    for name, value in expected.items():
        torch.testing.assert_close(actual[name].double(), value, rtol=1e-6, atol=1e-6)


def test_batch_norm_sees_the_micro_batch_only():
    model = Net(torch.nn.BatchNorm2d(4))
    x, target = torch.randn(8, 3, 6, 6), torch.randint(0, 3, (8,))
    results = [
        trained(copy.deepcopy(model), x, target, division, 1).conv.weight.detach().clone()
        for division in DIVISIONS[:3]
    ]
    assert (results[0] - results[2]).abs().max() > 1e-4
    assert (results[1] - results[2]).abs().max() > 1e-4


def test_batch_norm_statistics_are_those_of_the_first_replica():
    norm = torch.nn.BatchNorm1d(2, momentum=1.0)
    executor = inferenceModel(norm.train(), options_for(2, 1))
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0], [10.0, 20.0], [30.0, 60.0]])
    executor(x)
    executor.copyWeightsToHost()
    torch.testing.assert_close(norm.running_mean, torch.tensor([2.0, 4.0]))
    assert norm.num_batches_tracked == 0  # an integer: JitDispatch.cpp:111


def test_order_of_micro_batches():
    """[device iteration][accumulation step][replica], replica fastest."""

    class Collect(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            self.seen.mul_(10).add_(x)
            return self.seen * 1, F.l1_loss(x * self.weight, x)

    options = options_for(2, 2).deviceIterations(2).outputMode(OutputMode.All)
    seen, _ = trainingModel(Collect(), options)(torch.arange(1.0, 9.0))
    # Replica 0 gets 1 and 3, then 5 and 7; replica 1 gets 2 and 4, then 6 and 8.
    assert seen.tolist() == [1, 2, 13, 24, 135, 246, 1357, 2468]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (OutputMode.All, [1, 2, 3, 4, 5, 6, 7, 8]),
        (OutputMode.Final, [7, 8]),
        (OutputMode.Sum, [16, 20]),
        (OutputMode.EveryN, [3, 4, 7, 8]),
    ],
)
def test_output_modes_with_replicas(mode, expected):
    options = Options().deviceIterations(4).replicationFactor(2)
    options.outputMode(mode, 2 if mode == OutputMode.EveryN else None)
    outputs = inferenceModel(lambda x: x * 1, options)(torch.arange(1.0, 9.0))
    assert outputs.tolist() == expected
