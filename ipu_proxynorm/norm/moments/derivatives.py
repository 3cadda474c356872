"""The proxy's moments together with their derivatives, computed directly instead of by autograd.

A custom backward needs them: per channel there are four numbers to keep, however many nodes a
quadrature has, and they hold until the parameters change. Values equal `moments`; derivatives
equal what autograd makes of it.
"""

from __future__ import annotations

import math
from typing import List, NamedTuple

import torch
from torch import Tensor

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.moments.gaussian import TINY, as_tensors, far, gaussian_moments
from ipu_proxynorm.norm.moments.quadrature import Rule, midpoint_quantiles, trapezoid_rule

_CHANNELS = 1024


class MomentDerivatives(NamedTuple):
    """Mean E and variance V of φ(center + scale·t), and their derivatives; each (C,)."""

    mean: Tensor
    variance: Tensor
    mean_by_center: Tensor
    mean_by_scale: Tensor
    variance_by_center: Tensor
    variance_by_scale: Tensor


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
        return _relu(center, scale)
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


def _relu(center: Tensor, scale: Tensor) -> MomentDerivatives:
    """Return the closed form; α = center/|scale|, P = Φ(α), Q = Φ(−|α|), d is the density at α.

    E = mP + sd; V = s²(P − h(|α| + h)) for α < 0, h = d − |α|Q; ∂E/∂m = P; ∂E/∂s = d;
    ∂V/∂m = 2E(1 − P); ∂V/∂s = 2(sP − Ed). The forms below lose nothing for either sign of α.
    """
    s = scale.abs()
    end = far(center.dtype)
    alpha = center.div(s.clamp_min(TINY)).clamp_(-end, end)
    u = alpha.abs()
    q = torch.erfc(u * math.sqrt(0.5)).mul_(0.5)
    density = (alpha * alpha).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    first = torch.addcmul(density, u, q, value=-1)  # E[relu(t − u)]
    mean = center.clamp_min(0).addcmul_(s, first)
    rest = torch.rsub(q, 1, alpha=2)  # between Q and 1 − Q
    inside = rest * torch.gt(center, 0, out=torch.empty_like(center))
    above = q + inside  # P
    below = (rest - inside).add_(q)  # 1 − P: exactly Q where P is near 1
    variance = torch.addcmul(above, first, u + first, value=-1).mul_(s).mul_(s).clamp_min_(0)
    by_center = (mean * below).mul_(2)
    by_scale = (s * above).addcmul_(mean, density, value=-1).mul_(2)
    sign = scale.sign()
    return MomentDerivatives(
        mean, variance, above, density.mul_(sign), by_center, by_scale.mul_(sign)
    )


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
        value, slope = activation(z), _derivative(activation, z)
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
        (slope,) = torch.autograd.grad(activation(z).sum(), z)
    return slope


def _by_autograd(center: Tensor, scale: Tensor, activation: Activation) -> MomentDerivatives:
    with torch.enable_grad():
        center, scale = (p.detach().requires_grad_() for p in (center, scale))
        mean, variance = gaussian_moments(center, scale, activation)
        by_mean = torch.autograd.grad(mean.sum(), (center, scale), retain_graph=True)
        by_variance = torch.autograd.grad(variance.sum(), (center, scale))
    return MomentDerivatives(mean.detach(), variance.detach(), *by_mean, *by_variance)
