"""Replicas that exchange values: what each gets, its gradient, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator

ALL_GATHER, REDUCE_SCATTER = "ReplicatedAllGather", "ReplicatedReduceScatter"
ALL_REDUCE, ALL_TO_ALL = "ReplicatedAllReduce", "ReplicatedAllToAll"
ADD, MEAN, MUL, MIN, MAX, AND, OR, SQUARE_ADD, LOCAL = range(9)


def collective(x, name, shape, **attributes):
    example = torch.zeros(shape, dtype=x.dtype)
    return poptorch.custom_op([x], name, "ai.graphcore", 1, [example], attributes)[0]


def run(x, name, shape, replicas=4, **attributes):
    options = poptorch.Options().replicationFactor(replicas).autoRoundNumIPUs(True)
    executor = poptorch.inferenceModel(
        lambda x: collective(x, name, shape, **attributes).flatten(), options
    )
    return executor(x).view(replicas, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_what_every_replica_gets(dtype):
    x = torch.arange(32).to(dtype)
    own = x.view(4, 2, 2, 2)  # of 4 replicas, (4, 2) each as its parts for pairs
    gathered = run(x, ALL_GATHER, (4, 8))
    assert torch.equal(gathered, x.expand(4, 32))
    assert torch.equal(run(x, ALL_TO_ALL, (8,)), x.view(4, 4, 2).transpose(0, 1).reshape(4, 8))
    pairs = run(x, ALL_TO_ALL, (8,), __collectiveReplicaGrouping=[4, 1, 2])
    assert torch.equal(pairs[2], torch.cat([own[2, 0], own[3, 0]]).flatten())
    scattered = run(x, REDUCE_SCATTER, (2,))
    assert torch.equal(scattered.flatten(), x.view(4, 8).float().sum(0).to(dtype))


@pytest.mark.parametrize(
    ("operator", "expected"),
    [(ADD, 6), (MEAN, 2), (MUL, 6), (MIN, 1), (MAX, 3), (AND, 1), (OR, 1), (SQUARE_ADD, 14)],
)
def test_reductions(operator, expected):
    found = run(torch.tensor([1.0, 2.0, 3.0]), ALL_REDUCE, (1,), 3, __collectiveOperator=operator)
    assert found.flatten().tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"__collectiveCommGroup": [0, 0]}, [10, 10, 10, 10]),
        ({"__collectiveCommGroup": [1, 2]}, [3, 3, 7, 7]),
        ({"__collectiveCommGroup": [2, 2]}, [4, 6, 4, 6]),
        ({"__collectiveReplicaGrouping": [4, 2, 2]}, [4, 6, 4, 6]),
        ({"__collectiveReplicaGrouping": [4, 1, 1]}, [1, 2, 3, 4]),
    ],
)
def test_groups(group, expected):
    found = run(torch.tensor([1.0, 2.0, 3.0, 4.0]), ALL_REDUCE, (1,), **group)
    assert found.flatten().tolist() == expected


def test_parts_that_do_not_fit_end_in_zeros():
    found = run(torch.arange(6.0), REDUCE_SCATTER, (2,), 2, __collectiveOperator=LOCAL)
    assert found.tolist() == [[0, 1], [5, 0]]


class Sharded(nn.Module):
    """Embeddings of which every replica has a part, gathered; a product; noise of its own."""

    def __init__(self, replicas):
        super().__init__()
        self.replicas = replicas
        self.table = nn.Parameter(torch.randn(replicas, 3, 2))
        self.weight = nn.Parameter(torch.randn(2, 2))

    def forward(self, x):
        table = collective(self.table, ALL_GATHER, (self.replicas, *self.table.shape))
        # What the add-ons wrap a gather in, so that gradients are summed over replicas.
        table = collective(table, "ReplicatedAllReduceTP", table.shape, backwards=True)
        sent = collective(x @ self.weight, ALL_TO_ALL, x.shape)
        loss = ((sent @ table.flatten(0, 1).T) ** 2).mean()
        return sent, poptorch.identity_loss(loss, "none")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_equals_all_replicas_in_one(accumulation):
    replicas, size = 2, 4
    torch.manual_seed(0)
    model = Sharded(replicas)
    x = torch.randn(accumulation * replicas * size, 2)
    options = poptorch.Options().replicationFactor(replicas)
    options.outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(accumulation)
    table, weight = (p.detach().double().requires_grad_() for p in model.parameters())
    losses, values = [], []
    for step in x.double().view(accumulation, replicas, size, 2):
        product = (step @ weight).view(replicas, replicas, size // replicas, 2)
        sent = product.transpose(0, 1).reshape(replicas, size, 2)
        values.append(sent)
        losses += [((one @ table.reshape(-1, 2).T) ** 2).mean() for one in sent]
    (sum(losses) / len(losses)).backward()
    # Graphcore's operators: the loss of each replica counts whole, the reduction divides by them.
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), 1.0))
    executor.per_replica_params["table"] = (
        poptorch.CommGroupType.NoGrouping,
        1,
        poptorch.VariableRetrievalMode.OnePerGroup,
    )
    found, loss = executor(x)
    torch.testing.assert_close(found.double(), torch.cat(values).reshape(-1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.double(), torch.stack(losses), atol=1e-5, rtol=1e-5)
    expected = [(table - table.grad).float(), (weight - weight.grad).float()]
    torch.testing.assert_close(list(model.parameters()), expected, atol=1e-5, rtol=1e-5)


def gradient(name, shape, **attributes):
    """Return the gradient of the weighted sum of a collective's result, on 2 replicas."""
    model = nn.Module()
    model.values = nn.Parameter(torch.ones(2, 4))

    def forward(weights):
        result = collective(model.values, name, shape, **attributes)
        kept = 0 * model.values.sum()  # so that there is a gradient to look at in any case
        return poptorch.identity_loss((result.flatten() * weights).sum() + kept, "none")

    model.forward = forward
    options = poptorch.Options().replicationFactor(2)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), 1.0))
    executor.per_replica_params["values"] = (
        poptorch.CommGroupType.NoGrouping,
        1,
        poptorch.VariableRetrievalMode.OnePerGroup,
    )
    executor(torch.arange(1.0, 2 * torch.Size(shape).numel() + 1))
    return (1 - model.values.detach()).tolist()


def test_gradients_are_those_of_popart():
    # A gather's is each replica's own part of its own gradient, not the sum over replicas.
    assert gradient(ALL_GATHER, (8,)) == [[1, 2, 3, 4], [13, 14, 15, 16]]
    assert gradient(ALL_TO_ALL, (4,)) == [[1, 2, 5, 6], [3, 4, 7, 8]]
    local = gradient(REDUCE_SCATTER, (2,), __collectiveOperator=LOCAL)
    assert local == [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert gradient(ALL_REDUCE, (4,)) == [[0] * 4] * 2  # it ends there
    assert gradient("ReplicatedAllReduceTP", (4,)) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    summed = gradient("ReplicatedAllReduceTP", (4,), backwards=1)
    assert summed == [[6, 8, 10, 12]] * 2
    with pytest.raises(poptorch.Error, match="Local only"):
        gradient(REDUCE_SCATTER, (2,))


def test_each_replica_keeps_its_own_random_stream():
    def drawn(gather):
        def forward(x):
            first, second = torch.rand(2, device=x.device), torch.rand(2, device=x.device)
            return gather(first) + 0 * x.sum(), second + 0 * x.sum()

        options = poptorch.Options().replicationFactor(2).randomSeed(1)
        return poptorch.inferenceModel(forward, options)(torch.zeros(4))

    gathered, after = drawn(lambda x: collective(x, ALL_GATHER, (4,)))
    first, second = drawn(lambda x: x)
    assert torch.equal(gathered, first.repeat(2))
    assert torch.equal(after, second)
    assert not torch.equal(first[:2], first[2:])


def test_a_collective_that_only_one_replica_comes_to():
    def forward(x):
        reduced = poptorch.cond(
            x.sum() > 0, lambda x: collective(x, ALL_REDUCE, (2,)), [x], lambda x: x + 1, [x]
        )
        return reduced[0]

    executor = poptorch.inferenceModel(forward, poptorch.Options().replicationFactor(2))
    assert executor(torch.tensor([1.0, 1.0, 2.0, 2.0])).tolist() == [3, 3, 3, 3]
    with pytest.raises(poptorch.Error, match="wait for one another for ever"):
        executor(torch.tensor([1.0, 1.0, -2.0, -2.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: run(x, ALL_GATHER, (3,)), r"returns 16 elements, .* shape \[3\]"),
        (lambda x: run(x[:4], ALL_TO_ALL, (1,)), "1 elements does not split"),
        (lambda x: run(x > 0, ALL_GATHER, (16,)), "not torch.bool"),
        (lambda x: run(x, ALL_REDUCE, (4,), __collectiveOperator=9), "expected one of 0 .Add."),
        (lambda x: run(x, ALL_REDUCE, (4,), __collectiveReplicaGrouping=[2, 1, 2]), "are 4 rep"),
        (lambda x: run(x, ALL_REDUCE, (4,), __collectiveReplicaGrouping=[4, 2, 4]), "multiple of"),
        (lambda x: run(x, ALL_REDUCE, (4,), __collectiveCommGroup=[1, 3]), "do not divide 4"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(poptorch.Error, match=message):
        call(torch.arange(16.0))
