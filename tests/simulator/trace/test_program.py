"""Compiling: what a program keeps, and what it refuses to be made of."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Model(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.function = function

    def forward(self, x):
        return poptorch.identity_loss(self.function(self.weight * x), "sum")


def test_a_backward_written_in_python_is_refused_in_training():
    x = torch.tensor([2.0, 3.0])
    assert poptorch.inferenceModel(Model(Square.apply))(x).item() == 13
    with pytest.raises(poptorch.Error, match=rf"autograd.Function Square.*{__file__}"):
        poptorch.trainingModel(Model(Square.apply))(x)


def test_what_a_trace_computed_is_not_kept():
    seen = []

    def function(x):
        hidden = torch.relu(x)
        seen.append(weakref.ref(hidden))
        return hidden * hidden

    executor = poptorch.trainingModel(Model(function))
    executor.compile(torch.ones(2))
    gc.collect()
    assert seen[0]() is None


def test_unused_operations_are_left_out():
    def forward(x):
        _ = torch.sin(x)
        return torch.cos(x)

    model = poptorch.inferenceModel(forward)
    model.compile(torch.ones(1))
    assert [name for name in model.getTensorNames() if ":" in name] == ["cos:0"]


def test_a_constant_that_is_written_to_starts_anew_at_each_run():
    def forward(x):
        total = torch.tensor([1.0])
        total += x
        return total

    model = poptorch.inferenceModel(forward)
    assert [model(torch.ones(1)).item() for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_callers_gradient_mode_does_not_matter(mode):
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return poptorch.identity_loss(self.weight * x * self.calls, "sum")

    with mode():
        model = Counting()
        executor = poptorch.trainingModel(model)
        assert [executor(torch.ones(2)).item() for _ in range(2)] == pytest.approx([2, 3.96])
        inference = poptorch.inferenceModel(model)
        assert inference(torch.ones(2)).item() == pytest.approx(5.82)


def test_labels_out_of_range_while_compiling_are_no_crash():
    """The gradient's kernel writes at a label without a look at it; labels may be any memory."""

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 4)

        def forward(self, x, labels):
            log_probabilities = torch.log_softmax(self.linear(x), 1)
            losses = torch.nn.functional.nll_loss(log_probabilities, labels, reduction="none")
            return losses.mean()

    model = poptorch.trainingModel(Classifier())
    model.compile(torch.ones(2, 3), torch.tensor([2**31 - 1, -(2**31)]))
    assert torch.isfinite(model(torch.ones(2, 3), torch.tensor([1, 0])))
