"""Mean and variance of an activation of a Gaussian: what Proxy Norm subtracts and divides by."""

from __future__ import annotations

import functools
import math
from typing import List, Tuple

import numpy as np
import torch
from torch import Tensor

from ipu_proxynorm.norm.activations import (
    Activation,
    ActivationLike,
    PiecewiseLinear,
    resolve_activation,
)

METHODS = ("exact", "sampled")
_FAR = 13.0  # standard deviations beyond which a float32 Gaussian tail is zero
_TINY = 1e-30  # keeps 0 / 0 out of distances measured in standard deviations


def proxy_moments(
    weight: Tensor,
    bias: Tensor,
    proxy_weight: Tensor,
    proxy_bias: Tensor,
    activation: ActivationLike = "relu",
    *,
    method: str = "exact",
    n: int = 200,
) -> Tuple[Tensor, Tensor]:
    """Return mean and variance of φ(γ Ỹ + β), Ỹ ~ N(β̃, (1 + γ̃)²), for every channel.

    Args:
        weight: γ, shape (C,).
        bias: β, shape (C,).
        proxy_weight: γ̃, shape (C,), initially 0.
        proxy_bias: β̃, shape (C,), initially 0.
        activation: φ, by name, module or callable.
        method: ``exact`` or ``sampled``, the original implementation's midpoint quantiles.
        n: number of quantiles of ``sampled``.

    Returns:
        Mean and variance, each of shape (C,), in float32 (float64 for float64 parameters).

    Raises:
        ValueError: an unknown method or activation, or n below 1.

    """
    weight, bias, proxy_weight, proxy_bias = (
        p.float() if p.dtype in (torch.float16, torch.bfloat16) else p
        for p in (weight, bias, proxy_weight, proxy_bias)
    )
    center = weight * proxy_bias + bias
    scale = weight * (1 + proxy_weight)
    return gaussian_moments(center, scale, activation, method=method, n=n)


def gaussian_moments(
    center: Tensor,
    scale: Tensor,
    activation: ActivationLike = "relu",
    *,
    method: str = "exact",
    n: int = 200,
) -> Tuple[Tensor, Tensor]:
    """Return mean and variance of φ(center + scale·t), t ~ N(0, 1); all of shape (C,)."""
    known = resolve_activation(activation)
    if method == "exact" and known.pieces is not None:
        return _piecewise_linear_moments(center, scale.abs(), known)
    if method == "exact":
        nodes, weights = _trapezoid_rule(known.nodes, known.reach)
    elif method == "sampled":
        nodes, weights = _midpoint_quantiles(n)
    else:
        raise ValueError(f"unknown method '{method}': expected one of {', '.join(METHODS)}")
    t = torch.tensor(nodes, dtype=center.dtype, device=center.device)
    z = known(center.unsqueeze(1) + scale.unsqueeze(1) * t)  # (C, K)
    w = torch.tensor(weights, dtype=center.dtype, device=center.device)
    mean = (z * w).sum(1)
    return mean, ((z - mean.unsqueeze(1)).square() * w).sum(1)


def _piecewise_linear_moments(
    center: Tensor, scale: Tensor, activation: Activation
) -> Tuple[Tensor, Tensor]:
    """Take the tangent at the center, and correct it beyond each knot by a one-sided tail.

    With t standard normal and u_j the distance from the center to knot j in standard deviations,
    φ(center + scale·t) = φ(center) + scale·(q t + Σ_j c_j relu(±t − u_j)), where q is the slope at
    the center and c_j the change of slope: every term is small when it should be, so nothing
    cancels, however far the center lies from the knots.
    """
    pieces: PiecewiseLinear = activation.pieces  # type: ignore[assignment]
    changes = [b - a for a, b in zip(pieces.slopes, pieces.slopes[1:])]
    width = scale.clamp_min(_TINY)
    slope: Tensor = torch.full_like(center, pieces.slopes[0])
    tails: List[_Tail] = []
    for knot, change in zip(pieces.knots, changes):
        above = (center >= knot).to(center.dtype)
        slope = slope + change * above
        tails.append(_Tail(((center - knot).abs() / width).clamp_max(_FAR), above))
    mean = torch.zeros_like(center)
    variance = slope.square()
    for i, (change, tail) in enumerate(zip(changes, tails)):
        mean = mean + change * tail.first
        side = 1 - 2 * tail.above  # Cov(t, relu(±t − u)) = ±Q(u)
        variance = variance + (2 * change) * slope * side * tail.mass
        variance = variance + change**2 * (tail.second - tail.first.square())
        for other_change, other in zip(changes[i + 1 :], tails[i + 1 :]):
            # Knots are ascending: both tails lie above (other farther), below, or on either side.
            product = (1 - tail.above) * tail.product(other) + other.above * other.product(tail)
            covariance = product - tail.first * other.first
            variance = variance + (2 * change * other_change) * covariance
    value = activation(center)
    return value + scale * mean, (scale.square() * variance).clamp_min(0.0)


class _Tail:
    """Moments of relu(t − u) for t ~ N(0, 1) and u ≥ 0, all accurate far in the tail."""

    def __init__(self, u: Tensor, above: Tensor) -> None:
        self.u = u
        self.above = above  # 1 where the center lies above the knot: the tail is the lower one
        self.mass = 0.5 * torch.erfc(u * math.sqrt(0.5))  # Q(u)
        density = torch.exp(-0.5 * u.square()) * (1 / math.sqrt(2 * math.pi))
        self.first = density - u * self.mass
        self.second = (1 + u.square()) * self.mass - u * density

    def product(self, farther: _Tail) -> Tensor:
        """E[relu(t − u) relu(t − v)] for a knot at v ≥ u on the same side."""
        return farther.second + (farther.u - self.u) * farther.first


@functools.lru_cache(maxsize=None)
def _trapezoid_rule(n: int, reach: float) -> Tuple[List[float], List[float]]:
    """Nodes from −reach to reach, and Gaussian weights that sum to 1."""
    nodes = np.linspace(-reach, reach, n)
    weights = np.exp(-0.5 * nodes**2)
    return nodes.tolist(), (weights / weights.sum()).tolist()


@functools.lru_cache(maxsize=None)
def _midpoint_quantiles(n: int) -> Tuple[List[float], List[float]]:
    """Midpoint quantiles √2·erfinv(2(i+½)/n − 1), equally weighted."""
    if n < 1:
        raise ValueError(f"n is {n}: the sampled moments need at least 1 quantile")
    levels = torch.tensor([2 * (i + 0.5) / n - 1 for i in range(n)], dtype=torch.float64)
    return (math.sqrt(2) * torch.erfinv(levels)).tolist(), [1 / n] * n
