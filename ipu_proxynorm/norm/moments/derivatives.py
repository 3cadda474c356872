"""The proxy's moments together with their derivatives, computed directly instead of by autograd.

A custom backward needs them: per channel there are four numbers to keep, however many nodes a
quadrature has, and they hold until the parameters change. Values equal `moments`; derivatives
equal what autograd makes of it.
"""

from __future__ import annotations

from typing import List

import torch
from torch import Tensor

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.moments.gaussian import as_tensors, gaussian_moments
from ipu_proxynorm.norm.moments.quadrature import Rule, midpoint_quantiles, trapezoid_rule
from ipu_proxynorm.norm.moments.relu import MomentDerivatives, relu_moments

_CHANNELS = 1024


@torch.no_grad()
def moment_derivatives(
    center: Tensor,
    scale: Tensor,
    activation: Activation,
    *,
    method: str = "exact",
    n: int = 200,
) -> MomentDerivatives:
    """Return moments and derivatives for center and (signed) scale, both (C,)."""
    if method == "exact" and activation.name == "relu":
        return relu_moments(center, scale)
    if method == "exact" and activation.name == "identity":
        one, zero = torch.ones_like(center), torch.zeros_like(center)
        return MomentDerivatives(center, scale.square(), one, zero, zero, 2 * scale)
    smooth = activation.pieces is None and activation.name != "hardswish"
    if method == "exact" and not (smooth and activation.backward is not None):
        return _by_autograd(center, scale, activation)
    rule = (
        trapezoid_rule(activation.nodes, activation.reach)
        if method == "exact"
        else midpoint_quantiles(n)
    )
    return _weighted(center, scale, activation, rule)


def _weighted(
    center: Tensor, scale: Tensor, activation: Activation, rule: Rule
) -> MomentDerivatives:
    """Differentiate under the sum: E[φ'], E[tφ'], 2·Cov(φ, φ') and 2·Cov(φ, tφ')."""
    t, w = as_tensors(rule, center)
    weights = torch.stack([w, w * t], 1)  # (K, 2)
    columns: List[Tensor] = []
    # Some channels at a time, so that a core's cache holds all nodes of them.
    for m, s in zip(center.split(_CHANNELS), scale.split(_CHANNELS)):
        z = torch.addcmul(m.unsqueeze(1), s.unsqueeze(1), t)  # (C, K)
        slope = _derivative(activation, z)
        value = activation(z)  # last: a function that nobody vouches for may write over z
        mean = value @ w
        deviation = value - mean.unsqueeze(1)
        by_mean = slope @ weights  # (C, 2)
        by_variance = (slope * deviation) @ (2 * weights)
        variance = deviation.square_() @ w
        columns.append(torch.stack([mean, variance, *by_mean.t(), *by_variance.t()]))
    return MomentDerivatives(*torch.cat(columns, 1))


def _derivative(activation: Activation, z: Tensor) -> Tensor:
    if activation.backward is not None:
        return activation.backward(torch.ones_like(z), z)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activation(z.clone()).sum(), z)
    return slope


def _by_autograd(center: Tensor, scale: Tensor, activation: Activation) -> MomentDerivatives:
    with torch.enable_grad():
        center, scale = (p.detach().requires_grad_() for p in (center, scale))
        mean, variance = gaussian_moments(center, scale, activation)
        by_mean = torch.autograd.grad(mean.sum(), (center, scale), retain_graph=True)
        by_variance = torch.autograd.grad(variance.sum(), (center, scale))
    return MomentDerivatives(mean.detach(), variance.detach(), *by_mean, *by_variance)
