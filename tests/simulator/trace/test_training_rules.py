"""What one training call does to weights and buffers, and which losses it takes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator import Options, trainingModel

pytestmark = pytest.mark.simulator

X = torch.tensor([1.0, 2.0, 3.0, 4.0])


class Line(torch.nn.Module):
    """w x, with the loss w x; keeps a running sum of the weight in a buffer."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += self.weight + 1
        return poptorch.identity_loss(self.weight * x, "sum")


def weight_after(options, lr=0.1, calls=1, x=X):
    model = Line()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=lr)
    executor = trainingModel(model, options, optimizer)
    for _ in range(calls):
        executor(x)
    return model.weight.item(), model.seen.item()


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_gradients_are_averaged_or_added(replicas, accumulation):
    """Over accumulation steps and replicas alike; each micro-batch's loss is a sum."""

    def options(kind):
        made = Options().replicationFactor(replicas).broadcastBuffers(False)
        made.Training.gradientAccumulation(accumulation)
        if kind is not None:
            made.Training.accumulationAndReplicationReductionType(kind)
        return made

    x = torch.arange(1.0, 9.0)
    micro_batches = replicas * accumulation
    total = x.sum().item()
    mean, _ = weight_after(options(poptorch.ReductionType.Mean), x=x)
    assert weight_after(options(None), x=x)[0] == mean  # the default
    added, _ = weight_after(options(poptorch.ReductionType.Sum), x=x)
    assert mean == pytest.approx(-0.1 * total / micro_batches)
    assert added == pytest.approx(-0.1 * total)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_one_update_for_each_device_iteration(iterations):
    """The gradient is x, so weights add up; buffers see the weight of their own moment."""
    options = Options().deviceIterations(iterations)
    options.Training.gradientAccumulation(4 // iterations)
    weight, seen = weight_after(options)
    assert weight == pytest.approx(-0.1 * X.mean().item() * iterations)
    expected_weight, expected_seen = 0.0, 0.0
    for part in X.split(4 // iterations):
        expected_seen += len(part) * (expected_weight + 1)  # written in every micro-batch
        expected_weight -= 0.1 * part.mean().item()
    assert seen == pytest.approx(expected_seen)


@pytest.mark.parametrize("kind", [poptorch.ReductionType.Mean, poptorch.ReductionType.Sum])
def test_a_float16_accumulator_holds_the_mean_so_far(kind):
    """Four gradients of 30,000 add up to more than float16 has; their mean at any time does not."""
    options = Options()
    options.Training.gradientAccumulation(4).accumulationAndReplicationReductionType(kind)
    model = Line()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1e-4, accum_type=torch.float16)
    trainingModel(model, options, optimizer)(torch.full((4,), 30_000.0))
    expected = -3.0 if kind == poptorch.ReductionType.Mean else -math.inf
    assert model.weight.item() == pytest.approx(expected, rel=1e-3)


def test_weights_that_nobody_optimises_stay():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.held = torch.nn.Parameter(torch.ones(()))
            self.frozen = torch.nn.Parameter(torch.ones(()), requires_grad=False)
            self.left_out = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return poptorch.identity_loss(self.held * self.frozen * self.left_out * x, "sum")

    model = Two()
    optimizer = poptorch.optim.SGD([model.held, model.frozen], lr=0.1, weight_decay=0.5)
    trainingModel(model, optimizer=optimizer)(X)
    assert model.held.item() == pytest.approx(1 - 0.1 * (10 + 0.5))
    assert (model.frozen.item(), model.left_out.item()) == (1, 1)


def test_without_an_optimizer_it_is_sgd_with_a_hundredth():
    model = Line()
    trainingModel(model)(X)
    assert model.weight.item() == pytest.approx(-0.01 * X.sum().item())


LOSSES = {
    "l1": lambda y, t: F.l1_loss(y, t),
    "mse": lambda y, t: F.mse_loss(y, t),
    "smooth_l1": lambda y, t: F.smooth_l1_loss(y, t),
    "nll": lambda y, t: F.nll_loss(F.log_softmax(y, 1), t.argmax(1)),
    "cross_entropy": lambda y, t: F.cross_entropy(y, t.argmax(1)),
    "bce": lambda y, t: F.binary_cross_entropy(torch.sigmoid(y), torch.sigmoid(t)),
    "bce_with_logits": lambda y, t: F.binary_cross_entropy_with_logits(y, torch.sigmoid(t)),
    "kl_div": lambda y, t: F.kl_div(F.log_softmax(y, 1), t.softmax(1), reduction="batchmean"),
    "poisson": lambda y, t: F.poisson_nll_loss(y, t.abs()),
    "hinge": lambda y, t: F.hinge_embedding_loss(y, t.sign()),
    "soft_margin": lambda y, t: F.soft_margin_loss(y, t.sign()),
    "margin_ranking": lambda y, t: F.margin_ranking_loss(y, 2 * y, t.sign()),
    "triplet": lambda y, t: F.triplet_margin_loss(y, 2 * y, t),
    "cosine": lambda y, t: F.cosine_embedding_loss(y, t, t[:, 0].sign()),
    "ctc": lambda y, t: F.ctc_loss(
        F.log_softmax(y, 1).unsqueeze(1), torch.tensor([[1, 2]]), torch.tensor([4]),
        torch.tensor([2]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_torchs_own_losses_count(name):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x, target):
            y = self.linear(x)
            return LOSSES[name](y, target), y

    model = Model()
    reference = copy.deepcopy(model)
    x, target = torch.randn(4, 3), torch.randn(4, 3)
    loss, _ = trainingModel(
        model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )(x, target)  # fmt: skip
    expected, _ = reference(x, target)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.detach(), theirs.detach() - 0.1 * theirs.grad)


def test_a_float16_model_has_a_float16_loss():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2)).half()

    class WithLoss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return F.mse_loss(self.model(x), torch.zeros_like(x))

    assert trainingModel(WithLoss())(torch.ones(3, 2).half()).dtype == torch.float16


def test_detach_stops_gradients():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def forward(self, x):
            return poptorch.identity_loss(self.second(self.first(x).detach()), "sum")

    model = Two()
    before = copy.deepcopy(model.state_dict())
    trainingModel(model)(torch.ones(1, 2))
    assert torch.equal(model.first.weight, before["first.weight"])
    assert not torch.equal(model.second.weight, before["second.weight"])


def test_each_layers_training_mode_is_obeyed():
    class Dropped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.dropout, self.norm = torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(50)

        def forward(self, x):
            y = self.dropout(x * self.scale)
            # No gradient may pass a norm in evaluation mode: PopART has none (batchnorm.cpp:162).
            return y, poptorch.identity_loss(y.sum() + self.norm(y.detach()).sum(), "sum")

    for training in (True, False):
        model = Dropped()
        model.dropout.train(training)
        model.norm.eval().requires_grad_(False)
        dropped, _ = trainingModel(model)(torch.ones(4, 50))
        assert bool((dropped == 0).any()) is training
        assert torch.equal(model.norm.running_mean, torch.zeros(50))


def test_parameters_of_weight_norm_appear_under_their_own_names():
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.utils.weight_norm(torch.nn.Linear(3, 2))

        def forward(self, x):
            return poptorch.identity_loss(self.lin(x), "sum")

    executor = trainingModel(Normed())
    executor.compile(torch.ones(1, 3))
    names = executor.getTensorNames()
    for part in ("weight_v", "weight_g"):
        assert f"lin.{part}" in names
        assert f"UpdatedVar___lin.{part}" in names
    assert "lin.weight" not in names


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_train_and_keep_their_random_numbers(reentrant):
    """A second forward pass would drop others, and the gradients would not fit the outputs."""

    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1000))

        def forward(self, x):
            y = checkpoint(
                lambda z: F.dropout(torch.exp(z), 0.5), self.scale * x, use_reentrant=reentrant
            )
            return y, poptorch.identity_loss(y, "sum")

    model = Checkpointed()
    y, _ = trainingModel(
        model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0)
    )(torch.ones(1000))  # fmt: skip
    assert 0 < int((y == 0).sum()) < 1000
    torch.testing.assert_close(1 - model.scale.detach(), y)  # d/dz of exp is exp
    x = torch.ones(1000, requires_grad=True)
    checkpoint(torch.exp, x, use_reentrant=reentrant).sum().backward()  # torch's own again
    torch.testing.assert_close(x.grad, torch.full((1000,), math.e))


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_train(kind):
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(3, 4)

        def forward(self, x, target):
            return F.mse_loss(self.layer(x)[0], target)

    model = Recurrent()
    reference = copy.deepcopy(model)
    x, target = torch.randn(5, 2, 3), torch.randn(5, 2, 4)
    loss = trainingModel(model)(x, target)
    expected = reference(x, target)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.detach(), theirs.detach() - 0.01 * theirs.grad)
