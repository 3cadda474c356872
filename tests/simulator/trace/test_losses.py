"""Finding the loss: torch's own, or identity_loss; exactly one in the end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ipu_proxynorm.simulator import (
    Error,
    Options,
    identity_loss,
    inferenceModel,
    trainingModel,
)

pytestmark = pytest.mark.simulator


class Model(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.outputs = outputs

    def forward(self, x):
        return self.outputs(self.weight * x)


def step(outputs):
    """The change of the weights in one step of plain SGD at a learning rate of 1."""
    model = Model(outputs)
    before = model.weight.detach().clone()
    executor = trainingModel(model, Options(), torch.optim.SGD(model.parameters(), lr=1.0))
    executor(torch.tensor([1.0, 3.0]))
    assert model.unused.tolist() == [1, 1, 1]
    return (before - model.weight.detach()).tolist()


@pytest.mark.parametrize(
    ("outputs", "gradient"),
    [
        (lambda y: identity_loss(y, "sum"), [1, 3]),
        (lambda y: identity_loss(y, "mean"), [0.5, 1.5]),
        (lambda y: identity_loss(y, "none"), [1, 3]),
        (lambda y: (F.mse_loss(y, y.detach() - 1, reduction="sum"), y), [2, 6]),
        (lambda y: {"deep": [y, (F.l1_loss(y, torch.zeros_like(y)),)]}, [0.5, -1.5]),
        # The first is only a step on the way to the second.
        (lambda y: identity_loss(F.l1_loss(y, torch.zeros_like(y)) * 4, "none"), [2, -6]),
    ],
)
def test_the_loss_wherever_it_stands(outputs, gradient):
    assert step(outputs) == pytest.approx(gradient)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ctc_loss_with_lengths_as_numbers(reduction):
    scores = torch.randn(6, 2, 5)
    labels = torch.tensor([[1, 2], [3, 3]])

    def loss(scores):
        target = labels.to(scores.device)
        return F.ctc_loss(scores.log_softmax(-1), target, [6, 5], (1, 2), reduction=reduction)

    torch.testing.assert_close(inferenceModel(loss)(scores), loss(scores))


def test_no_loss_and_two_losses_are_refused():
    with pytest.raises(Error, match="Couldn't find a loss in graph"):
        step(lambda y: y.sum())
    with pytest.raises(Error, match="Multiple independent losses found in graph"):
        step(lambda y: F.l1_loss(y, y * 2) + F.l1_loss(y, y * 3) * 5)


def test_identity_loss_on_the_cpu():
    for reduction, value, gradient in (("mean", 1.5, 0.5), ("sum", 3.0, 1.0)):
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        loss = identity_loss(x, reduction)
        loss.backward()
        assert loss.item() == value
        assert x.grad.tolist() == [gradient, gradient]
    copied = identity_loss(x, "none")
    assert copied.tolist() == [1, 2]
    assert copied.data_ptr() != x.data_ptr()
    with pytest.raises(AssertionError, match="Unsupported reduction"):
        identity_loss(x, "max")


def test_training_with_nothing_to_train():
    model = Model(lambda y: identity_loss(y, "sum")).requires_grad_(False)
    loss = trainingModel(model)(torch.tensor([1.0, 3.0]))
    assert loss.item() == -1
    assert model.weight.tolist() == [2, -1]


def test_backward_on_an_output_is_refused():
    loss = trainingModel(Model(lambda y: identity_loss(y, "sum")))(torch.ones(2))
    with pytest.raises(Error, match=r"backward\(\) cannot be called explicitly"):
        loss.backward()
