from __future__ import annotations

import importlib
import pathlib

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.memory.cycles import work_of
from ipu_proxynorm.norm.modules import ProxyNormAct
from ipu_proxynorm.norm.units import GroupNormAct

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def form(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("study_program")


def drawn(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("delayed", [False, True])
def test_the_studys_proxy_norm_has_the_gradients_of_its_formula(form, delayed):
    x, gamma, beta, mean, scale = inputs = [drawn(2, 3, 4, 5), *(drawn(1, 3, 1, 1) for _ in "1234")]
    plain = nn.functional.silu(x * gamma + beta) - mean
    plain = plain if delayed else plain * scale
    needed = inputs[:4] if delayed else inputs
    weights = drawn(2, 3, 4, 5).detach()
    expected = torch.autograd.grad((plain * weights).sum(), needed)
    out = form.ProxySwish.apply(*inputs, delayed)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(torch.autograd.grad((out * weights).sum(), needed), expected)


def test_the_studys_swish_is_swish(form):
    x = drawn(50)
    out = form.Swish.apply(x)
    torch.testing.assert_close(out, nn.functional.silu(x))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(nn.functional.silu(x).sum(), x)[0])


def full_size(unit, form, backward):
    """Return the operators of a unit's pass that read or make as much as its input has."""
    model = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), unit)
    form.in_study_form(model)
    captured = memory.capture(model, [torch.empty(2, 8, 6, 6)], training=True)
    tensors = captured.tensors
    return sorted(
        o.name
        for o in (captured.backward(0) if backward else captured.forward(0))
        if any(tensors[i].shape == (2, 16, 6, 6) for i in (*o.inputs, *o.outputs))
        and o.layer == "1"
        and "group_norm" not in o.name
        and work_of(captured, o).kind  # makes no constant
    )


def test_units_run_the_operators_of_the_sources(form):
    # Counted in Models/proxy_norm.py and in TensorFlow's gradients, by hand.
    unit = GroupNormAct(16, "silu", spec="gn4")
    assert full_size(unit, form, backward=False) == ["mul", "sigmoid"]
    gradient = ["add", "mul", "mul", "mul", "rsub", "sigmoid"]
    assert full_size(unit, form, backward=True) == gradient
    for delayed in (False, True):
        unit = ProxyNormAct(16, "silu", spec="ln+pn")
        if delayed:
            unit.scale_rule = "dropped"
        scale = [] if delayed else ["mul"]
        forward = full_size(unit, form, backward=False)
        assert forward == ["add", "mul", "mul", *scale, "sigmoid", "sub"]
        # The zero added, the affine part again; the sum over mean's negated gradient; those of
        # gamma and beta, a product for the first; the gradient of what was normalized.
        again = ["add", "add", "mul", "neg", "sum", "sum", "sum", "mul", "mul"]
        # The swish again and its mean off, its product with the gradient summed, the gradient
        # scaled.
        of_scale = [] if delayed else ["mul", "sub", "mul", "sum", "mul"]
        assert full_size(unit, form, backward=True) == sorted(gradient + again + of_scale)
