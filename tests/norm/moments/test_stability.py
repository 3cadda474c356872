"""Nothing overflows, divides by zero or cancels at the edges of what parameters can become."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import List

import mpmath
import pytest
import torch
from torch import Tensor

from ipu_proxynorm.norm import plain_operators, proxy_moments
from ipu_proxynorm.norm.activations import ACTIVATIONS, resolve_activation
from ipu_proxynorm.norm.fused import prepare
from ipu_proxynorm.norm.modules import ProxyNormAct

# (γ, β, γ̃, β̃), each a value that broke some formula of the moments in float32.
CASES = {
    "initial": (1.0, 0.0, 0.0, 0.0),
    "no scale": (0.0, 0.5, 0.0, 0.0),
    "no scale, no shift": (0.0, 0.0, 0.0, 0.0),
    "no scale, negative shift": (0.0, -0.5, 0.3, 0.2),
    "no shift": (1.5, 0.0, 0.2, 0.0),
    "proxy without scale": (1.0, 0.3, -1.0, 0.2),
    "proxy without scale on the kink": (1.0, 0.0, -1.0, 0.0),
    "proxy without scale below the kink": (1.0, -2.0, -1.0, 0.0),
    "proxy with negative scale": (1.0, 0.3, -2.5, 0.1),
    "tiny scale": (1e-25, 0.5, 0.0, 0.0),
    "tiny scale, no shift": (1e-25, 0.0, 0.0, 0.0),
    "tiny scale, negative shift": (1e-25, -1.0, 0.1, 0.3),
    "negative tiny scale": (-1e-25, 1e-25, 0.0, 0.5),
    "far above": (0.01, 1e4, 0.0, 0.0),
    "far below": (0.01, -1e4, 0.0, 0.0),
    "above": (0.01, 100.0, 0.3, -0.2),
    "below": (0.01, -100.0, 0.3, -0.2),
    "large scale": (1e4, 0.0, 0.0, 0.0),
    "large scale, shifted": (1e4, 3.0, 0.5, 0.5),
    "large negative scale": (-1e4, -3.0, -0.5, 0.5),
    "tail at -3": (1.0, -3.0, 0.0, 0.0),
    "tail at -8": (1.0, -8.0, 0.0, 0.0),
    "tail at -12": (1.0, -12.0, 0.0, 0.0),
}


def parameters(case: str, dtype: torch.dtype = torch.float32) -> List[Tensor]:
    return [torch.full((4,), v, dtype=dtype, requires_grad=True) for v in CASES[case]]


@pytest.mark.parametrize("case", CASES)
def test_moments_are_finite(case: str) -> None:
    for activation, method in itertools.product(ACTIVATIONS, ("exact", "sampled")):
        values = parameters(case)
        mean, var = proxy_moments(*values, activation, method=method)
        std = (var + 0.03).sqrt()
        grads = torch.autograd.grad((mean / std).sum() + std.sum(), values)
        prepared = prepare(*values, resolve_activation(activation), method=method)
        for tensor in (mean, var, *grads, *prepared):
            assert tensor.isfinite().all(), (activation, method)
        assert (var >= 0).all(), (activation, method)


def in_range(case: str, dtype: torch.dtype) -> bool:
    """Whether activations, with or without Proxy Norm, can be held by the dtype."""
    return dtype != torch.float16 or max(map(abs, CASES[case])) < 1e4


@pytest.mark.parametrize("case", CASES)
def test_the_block_is_finite(case: str) -> None:
    for activation in ("relu", "relu6", "leaky_relu", "hardswish", "silu", "gelu"):
        module = ProxyNormAct(4, activation, spec="gn2+pn")
        with torch.no_grad():
            for parameter, value in zip(module.moment_parameters, CASES[case]):
                parameter.fill_(value)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            # On a CPU torch 2.0 has no plain float16 norms: there the fused block widens its input.
            for plain in (False, True) if dtype != torch.float16 else (False,):
                x = torch.randn(3, 4, 5, 5).to(dtype).requires_grad_()
                with plain_operators() if plain else contextlib.nullcontext():
                    out = module(x)
                out.float().square().mean().backward()
                found = (out, x.grad, *(p.grad for p in module.parameters()))
                finite = all(t.isfinite().all() for t in found)
                assert finite or not in_range(case, dtype), (activation, dtype, plain)


def relu_moments(m: float, s: float) -> tuple[float, float]:
    """ReLU's moments with fifty digits."""
    with mpmath.workdps(50):
        m, s = mpmath.mpf(m), mpmath.mpf(s)
        alpha = m / s
        mean = m * mpmath.ncdf(alpha) + s * mpmath.npdf(alpha)
        second = (m**2 + s**2) * mpmath.ncdf(alpha) + m * s * mpmath.npdf(alpha)
        return float(mean), float(second - mean**2)


@pytest.mark.parametrize("beta", [-12.0, -8.0, -5.0, -3.0, 3.0, 12.0, 100.0, 1e4])
@pytest.mark.parametrize("gamma", [0.01, 0.3, 1.0, 1e4])
def test_relu_loses_nothing_in_the_tails(beta: float, gamma: float) -> None:
    weight, bias = torch.tensor([gamma]), torch.tensor([beta])
    zero = torch.zeros(1)
    mean, var = proxy_moments(weight, bias, zero, zero, "relu")
    prepared = prepare(weight, bias, zero, zero, resolve_activation("relu"))
    expected_mean, expected_var = relu_moments(bias.item(), weight.item())
    for got in (mean, prepared.mean):
        assert got.item() == pytest.approx(expected_mean, rel=1e-6, abs=1e-7)
    std = math.sqrt(expected_var + 0.03)
    assert (var + 0.03).sqrt().item() == pytest.approx(std, rel=1e-6)
    assert 1 / prepared.inv_std.item() == pytest.approx(std, rel=1e-6)
