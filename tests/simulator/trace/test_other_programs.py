"""What other people's programs do and our own networks do not, each against plain torch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator.trace.effects import without_write

pytestmark = pytest.mark.simulator

X = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.repeat_interleave(2, dim=0),
        lambda x: x.repeat_interleave(3, -1),
        lambda x: torch.repeat_interleave(x, 2),
        lambda x: torch.repeat_interleave(x, repeats=2, dim=1, output_size=4),
    ],
)
def test_repeat_interleave_with_a_number(call):
    assert torch.equal(poptorch.inferenceModel(call)(X), call(X))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.masked_fill(x > 4, -math.inf).softmax(1),
        lambda x: torch.where(x > 1, x, math.inf).amin(),
        lambda x: (x + torch.full((3, 2), -math.inf, device=x.device).triu(1)).softmax(1),
        lambda x: torch.nn.functional.pad(x, (1, 0), value=-math.inf).amax(1),
    ],
)
def test_an_infinity_that_is_given_is_no_floating_point_exception(call):
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    assert torch.equal(poptorch.inferenceModel(call, options)(X), call(X))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: (x / (x - 1)).isinf(),
        lambda x: torch.isinf(x.int()),
        lambda x: torch.addr(x, x[:, 0], x[0], beta=0.5, alpha=2),
        lambda x: x.addr(x[:, 0], x[0]),
        lambda x: torch.dist(x, x * x),
        lambda x: x.dist(x * x, p=1),
        lambda x: torch.deg2rad(x) + x.rad2deg(),
        lambda x: [torch.rot90(x[:, None], k, (0, 2)) for k in range(-1, 4)],
        lambda x: torch.block_diag(x, x[0].int(), x.sum(), x + 1),
        lambda x: torch.nn.PixelUnshuffle(2)(x.repeat(4, 4).view(2, 3, 4, 4)),
    ],
)
def test_what_torch_takes_apart_for_every_device(call):
    results = poptorch.inferenceModel(call)(X)
    for result, expected in (
        zip(results, call(X)) if isinstance(results, list) else [(results, call(X))]
    ):
        assert result.shape == expected.shape
        assert torch.allclose(result.float(), expected.float())


def test_random_tensors_of_anothers_shape_are_drawn_anew_within_their_bounds():
    def draw(x):
        halves = torch.randn_like(x, dtype=torch.float16)
        return (
            torch.rand_like(x),
            torch.randint_like(x, 2, high=5),
            torch.randint_like(x, 3),
            halves,
        )

    model = poptorch.inferenceModel(draw)
    (uniform, bounded, below, normal), second = model(torch.zeros(2000)), model(torch.zeros(2000))
    assert all(0 <= value < 1 for value in uniform.tolist())
    assert abs(uniform.mean() - 0.5) < 0.05
    assert set(bounded.tolist()) == {2.0, 3.0, 4.0}
    assert set(below.tolist()) == {0.0, 1.0, 2.0}
    assert normal.dtype == torch.float16
    assert abs(normal.float().std() - 1) < 0.1
    assert not torch.equal(uniform, second[0])
    assert not torch.equal(normal, second[3])


def test_repeat_interleave_with_numbers_of_the_device_is_refused():
    with pytest.raises(poptorch.Error, match="repeat_interleave"):
        poptorch.inferenceModel(lambda x, n: x.repeat_interleave(n, dim=0))(X, torch.ones(3).int())


@pytest.mark.parametrize(
    "allocate",
    [
        lambda x: x.new_empty(100, 100),
        lambda x: torch.empty(100, 100, device=x.device),
        lambda x: torch.empty_like(x.expand(1000, 3, 2)),
    ],
)
def test_allocation_is_no_floating_point_exception(allocate):
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    poison = [torch.full((100, 100), float("nan")) for _ in range(8)]
    del poison
    model = poptorch.inferenceModel(lambda x: x + allocate(x).fill_(1.0).mean(), options)
    assert torch.equal(model(X), X + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_powers_in_place_of_a_tensor_of_the_programs_own(dtype):
    """``pow_.Scalar`` is no ``pow.Scalar``, whose tensor is the exponent: ``deg.pow_(-0.5)``."""

    def forward(x):
        degrees = x * 1.0
        degrees.pow_(-0.5)
        return degrees + 1

    x = torch.tensor([4.0, 16.0]).to(dtype)
    assert poptorch.inferenceModel(forward)(x).tolist() == [1.5, 1.25]


def test_what_makes_anew_what_an_operator_in_place_writes():
    """Every such operator of torch takes the arguments of the one that stands for it."""
    found = {}
    for schema in torch._C._jit_get_all_schemas():
        name = schema.name[len("aten::") :]
        packet = getattr(torch.ops.aten, name, None) if name.endswith("_") else None
        function = getattr(packet, schema.overload_name or "default", None)
        if schema.name.startswith("aten::") and function is not None:
            functional = without_write(function)
            if functional is not None:
                found[name, schema.overload_name] = functional
                given = [str(argument.type) for argument in schema.arguments]
                taken = [str(a.type) for a in functional._schema.arguments]
                assert taken[: len(given)] == given, name
    assert found["pow_", "Scalar"] is torch.ops.aten.pow.Tensor_Scalar
    assert found["add_", "Tensor"] is torch.ops.aten.add.Tensor
    assert len(found) > 200


def test_floating_point_exceptions_leave_layer_norm_alone():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(2)

        def forward(self, x):
            return poptorch.identity_loss(self.norm(x).square(), "sum")

    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    expected = Net()(X).detach()
    torch.testing.assert_close(poptorch.trainingModel(Net(), options)(X), expected)


class Classifier(torch.nn.Module):
    def __init__(self, **loss):
        super().__init__()
        self.linear = torch.nn.Linear(4, 5)
        self.loss = torch.nn.CrossEntropyLoss(**loss)

    def forward(self, x, y):
        return self.loss(self.linear(x), y)


@pytest.mark.parametrize("ignored", [-100, 2])
def test_smoothed_cross_entropy(ignored):
    model = Classifier(label_smoothing=0.1, reduction="sum", ignore_index=ignored)
    plain = copy.deepcopy(model)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    loss = poptorch.trainingModel(model, None, optimizer)(x, y)
    expected = plain(x, y)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.detach(), theirs.detach() - 0.1 * theirs.grad)
    with pytest.raises(poptorch.Error, match=r"label_smoothing.*reduction='sum'"):
        poptorch.trainingModel(Classifier(label_smoothing=0.1))(x, y)


class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x + self.count


def test_written_buffers_are_refused_where_inputs_differ():
    """Source: PopTorch's LowerToPopartFactories.cpp:42 and SessionOptions.cpp:468."""
    with pytest.raises(poptorch.Error, match=r"broadcasting buffers.* count \("):
        poptorch.inferenceModel(Counts(), poptorch.Options().replicationFactor(2))(torch.ones(2))
    same = poptorch.Options().replicationFactor(2)
    same.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    assert poptorch.inferenceModel(Counts(), same)(torch.ones(1)).tolist() == [2, 2]
    groups = poptorch.Options().replicationFactor(4)
    groups.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    with pytest.raises(poptorch.Error, match="broadcasting buffers"):
        poptorch.inferenceModel(Counts(), groups)(torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batch_norm_trains_on_replicas(dtype):
    """PopTorch tracks operators in place on floats only; a batch norm is none.

    Source: InplaceOps.cpp:210 (what is tracked), JitDispatch.cpp:104-118 (integers are constants).
    """

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, x):
            return poptorch.identity_loss(self.norm(x).float().square().sum(), "none")

    net = Net().to(dtype)
    options = poptorch.Options().replicationFactor(2)
    trainer = poptorch.trainingModel(net, options, poptorch.optim.SGD(net.parameters(), lr=0.0))
    x = torch.randn(8, 3).to(dtype)
    trainer(x)
    expected = 0.1 * x[:4].float().mean(0)  # the host reads replica 0's
    torch.testing.assert_close(net.norm.running_mean.float(), expected, atol=1e-3, rtol=1e-2)


class Attends(torch.nn.Module):
    """A convolution of what attention gives back, whose channels lie innermost in memory."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(8, 8, 3), torch.nn.Linear(8 * 4, 2)

    def forward(self, x):
        tokens = torch.relu(x.flatten(2).permute(0, 2, 1).matmul(torch.ones(8, 8)))
        maps = tokens.permute(0, 2, 1).view(x.shape)
        y = self.fc(self.conv(maps).flatten(1))
        return y, poptorch.identity_loss(y.pow(2).mean(), "none")


def test_convolutions_lay_out_their_results_alike_when_recorded_and_when_run():
    torch.manual_seed(0)
    model, x = Attends(), torch.randn(32, 8, 4, 4)
    expected, loss = model(x)
    loss.backward()
    weight = (model.fc.weight - model.fc.weight.grad).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    outputs, _ = poptorch.trainingModel(model, optimizer=optimizer)(x)
    torch.testing.assert_close(outputs, expected.detach())
    torch.testing.assert_close(model.fc.weight.detach(), weight)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_train(mode):
    """Their gradient wants torch's 64-bit integers in more arguments than indices."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(7, 3, mode=mode)

        def forward(self, indices):
            return poptorch.identity_loss(self.bag(indices).pow(2).sum(), "none")

    torch.manual_seed(0)
    model = Model()
    reference = copy.deepcopy(model).double()
    indices = torch.tensor([[1, 2, 6, 6], [0, 3, 2, 5]])
    reference(indices).backward()
    poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))(indices)
    weight = reference.bag.weight
    expected = weight - 0.1 * weight.grad
    torch.testing.assert_close(model.bag.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_scripted_part_of_a_model_trains():
    linear = nn.Linear(4, 4)
    scripted = torch.jit.script(copy.deepcopy(linear))

    class Model(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, x):
            return poptorch.identity_loss(self.part(x).pow(2).sum(), "none")

    model, x = Model(scripted), torch.ones(2, 4)
    Model(linear)(x).backward()
    poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))(x)
    for found, weight in zip(model.parameters(), linear.parameters()):
        torch.testing.assert_close(found, weight - 0.1 * weight.grad, check_stride=False)


class State(torch.Tensor):
    """A tensor without elements and with a flag, as snnTorch begins with."""

    @staticmethod
    def __new__(cls, *args, is_set=False):
        return super().__new__(cls, *args)

    def __init__(self, *args, is_set=True):
        self.is_set = is_set


def test_a_model_makes_tensors_of_its_own_class():
    def integrate(x):
        state, spikes = State(is_set=False), 0
        for _ in range(3):
            if isinstance(state, State) and not state.is_set:
                torch.Tensor(state)
                state = torch.zeros_like(x)
            state = 0.5 * state + x
            spikes = spikes + (state > 3).to(x.dtype)
        return spikes

    assert torch.equal(poptorch.inferenceModel(integrate)(X), integrate(X))
    assert "__new__" not in torch.Tensor.__dict__


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.split(x, [1, 1], 1)[1].view(3),
        lambda x: x.t().view(-1) * 2,
        lambda x: x[:, :1].expand(3, 4).view(2, 6).softmax(1),
        lambda x: x.t()[:, ::2].view(4),
    ],
)
def test_view_of_what_is_not_contiguous_here(call, monkeypatch):
    # The device's tensors have no strides: TypeInferenceHandler.cpp:240.
    found = poptorch.inferenceModel(call)(X)
    monkeypatch.setattr(torch.Tensor, "view", torch.Tensor.reshape)
    assert torch.equal(found, call(X))


def test_gradients_pass_through_such_a_view():
    layer = nn.Linear(2, 4)
    plain = copy.deepcopy(layer)

    def loss(layer, x):
        return poptorch.identity_loss((layer(x).t().view(2, 6) * x.view(6)).square(), "mean")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return loss(self.layer, x)

    model = poptorch.trainingModel(Model(), None, torch.optim.SGD(layer.parameters(), lr=0.1))
    model(X)
    (plain(X).t().reshape(2, 6) * X.view(6)).square().mean().backward()
    assert torch.allclose(layer.weight, plain.weight - 0.1 * plain.weight.grad)


def test_such_a_view_is_not_written_to():
    with pytest.raises(poptorch.Error, match="view of a tensor that is not contiguous"):
        poptorch.inferenceModel(lambda x: x.t().view(-1)[1:].add_(1))(X)
