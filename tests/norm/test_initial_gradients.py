"""At the initial values every channel's proxy sits exactly on ReLU's kink."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ipu_proxynorm.norm import proxy_moments
from ipu_proxynorm.norm.activations import ACTIVATIONS, Activation
from ipu_proxynorm.norm.moments.derivatives import moment_derivatives
from ipu_proxynorm.norm.moments.gaussian import gaussian_moments


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("at", [0.0, 1e-9])
def test_gradients_are_the_limit(activation: str, at: float) -> None:
    def total(bias: Tensor, proxy_weight: Tensor, proxy_bias: Tensor) -> Tensor:
        one = torch.ones(1, dtype=torch.float64)
        mean, var = proxy_moments(one, bias, proxy_weight, proxy_bias, activation)
        return mean.sum() + 2 * var.sum()

    values = [torch.full((1,), at if i != 1 else 0.0, dtype=torch.float64) for i in range(3)]
    values = [v.requires_grad_() for v in values]
    grads = torch.autograd.grad(total(*values), values)
    step = 1e-4
    for i, grad in enumerate(grads):
        up = [v.detach() + (step if j == i else 0) for j, v in enumerate(values)]
        down = [v.detach() - (step if j == i else 0) for j, v in enumerate(values)]
        numeric = (total(*up) - total(*down)) / (2 * step)
        assert grad.item() == pytest.approx(numeric.item(), abs=1e-4)
    assert grads[0].abs() > 1e-3


@pytest.mark.parametrize("knot", [-3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=lambda a: a.name)
def test_direct_derivatives_on_a_knot_equal_autograd(activation: Activation, knot: float) -> None:
    center = torch.full((1,), knot, dtype=torch.float64, requires_grad=True)
    scale = torch.full((1,), 0.7, dtype=torch.float64, requires_grad=True)
    mean, var = gaussian_moments(center, scale, activation)
    grads = [
        torch.autograd.grad(m, p, retain_graph=True, allow_unused=True)[0]
        for m in (mean, var)
        for p in (center, scale)
    ]
    expected = [m.detach() for m in (mean, var)]
    expected += [torch.zeros_like(center) if g is None else g for g in grads]
    direct = list(moment_derivatives(center, scale, activation))
    torch.testing.assert_close(direct, expected)
