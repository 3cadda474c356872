"""Mean and variance of an activation of a Gaussian: what Proxy Norm subtracts and divides by."""

from __future__ import annotations

import math
from typing import List, Tuple

import torch
from torch import Tensor

from ipu_proxynorm.norm.activations import ActivationLike, PiecewiseLinear, resolve_activation
from ipu_proxynorm.norm.execution import in_program, own_precision
from ipu_proxynorm.norm.moments.quadrature import (
    legendre_rule,
    midpoint_quantiles,
    trapezoid_rule,
)
from ipu_proxynorm.norm.moments.relu import TINY, far, relu_moments

METHODS = ("exact", "sampled")


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
    weight, bias, proxy_weight, proxy_bias = map(
        at_least_float32, (weight, bias, proxy_weight, proxy_bias)
    )
    center = weight * proxy_bias + bias
    scale = weight * (1 + proxy_weight)
    with own_precision(center.device.type):
        return gaussian_moments(center, scale, activation, method=method, n=n)


def gaussian_moments(
    center: Tensor,
    scale: Tensor,
    activation: ActivationLike = "relu",
    *,
    method: str = "exact",
    n: int = 200,
) -> Tuple[Tensor, Tensor]:
    """Return mean and variance of φ(center + scale·t), t ~ N(0, 1); all of shape (C,).

    Plain, differentiable operators throughout. The variance is never had as E[φ²] − E[φ]², which
    loses everything where the variance is small beside the mean.
    """
    known = resolve_activation(activation)
    if method == "sampled":
        return weighted_moments(center, scale, known, midpoint_quantiles(n))
    if method != "exact":
        raise ValueError(f"unknown method '{method}': expected one of {', '.join(METHODS)}")
    if known.name == "relu" and in_program():
        return relu_moments(center.detach(), scale.detach()).attached(center, scale)
    if known.pieces is not None:
        return _piecewise_linear_moments(center, scale.abs(), known.pieces)
    if known.name == "hardswish":
        return _hardswish_moments(center, scale.abs())
    return weighted_moments(center, scale, known, trapezoid_rule(known.nodes, known.reach))


def weighted_moments(
    center: Tensor,
    scale: Tensor,
    activation: ActivationLike,
    rule: Tuple[List[float], List[float]],
) -> Tuple[Tensor, Tensor]:
    """Return mean and variance over a rule's nodes and weights, in place of the Gaussian.

    Both are taken of φ less its value at the center, a constant to them: small where the variance
    is, so that little is lost when the mean's square is subtracted.
    """
    t, w = as_tensors(rule, center)
    known = resolve_activation(activation)
    at = center.detach()
    # A function that nobody vouches for may write over its argument.
    middle = known(at if known.backward is not None else at.clone())
    z = known(center.unsqueeze(1) + scale.unsqueeze(1) * t) - middle.unsqueeze(1)  # (C, K)
    mean = (z * w).sum(1)
    return mean + middle, (z.square() * w).sum(1) - mean.square()


def in_deviations(distance: Tensor, width: Tensor) -> Tensor:
    """Return distance / width, kept within `far` on either side.

    The denominator grows instead of the quotient being cut: else the quotient's derivative, which
    autograd computes first and multiplies by zero after, is infinite where a width is tiny.
    """
    return distance / torch.maximum(width, distance.detach().abs() / far(distance.dtype))


def as_tensors(rule: Tuple[List[float], List[float]], like: Tensor) -> Tuple[Tensor, Tensor]:
    """Return a rule's nodes and weights, each (K,), in the dtype and on the device of a tensor."""
    nodes, weights = (torch.tensor(r, dtype=like.dtype, device=like.device) for r in rule)
    return nodes, weights


def at_least_float32(parameter: Tensor) -> Tensor:
    """Return a parameter in float32, or as it is where it is that or float64."""
    half = parameter.dtype in (torch.float16, torch.bfloat16)
    return parameter.float() if half else parameter


def _piecewise_linear_moments(
    center: Tensor, scale: Tensor, pieces: PiecewiseLinear
) -> Tuple[Tensor, Tensor]:
    """Mean and variance in closed form.

    The tangent at the center is corrected beyond each knot by a one-sided tail. With t standard
    normal and u_j the distance from the center to knot j in standard deviations,
    φ(center + scale·t) = φ(center) + scale·(q t + Σ_j c_j relu(±t − u_j)), where q is the slope at
    the center and c_j the change of slope: every term is small when it should be, so nothing
    cancels, however far the center lies from the knots. A center on a knot, where every channel
    starts, counts as above it in all terms alike: so each has the gradient of one side.
    """
    changes = [b - a for a, b in zip(pieces.slopes, pieces.slopes[1:])]
    width = scale.clamp_min(TINY)
    slope: Tensor = torch.full_like(center, pieces.slopes[0])
    intercept: Tensor = torch.full_like(center, pieces.intercept)
    tails: List[_Tail] = []
    for knot, change in zip(pieces.knots, changes):
        above = (center >= knot).to(center.dtype)
        slope = slope + change * above
        intercept = intercept - (change * knot) * above
        tails.append(_Tail(in_deviations((2 * above - 1) * (center - knot), width), above))
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
    value = slope * center + intercept
    return value + scale * mean, (scale.square() * variance).clamp_min(0.0)


class _Tail:
    """Moments of relu(t − u) for t ~ N(0, 1) and u ≥ 0, all accurate far in the tail."""

    def __init__(self, u: Tensor, above: Tensor) -> None:
        self.u = u
        self.above = above  # 1 where the center lies above the knot: the tail is the lower one
        self.mass = 0.5 * _erfc(u * math.sqrt(0.5))  # Q(u)
        density = gaussian_density(u)
        self.first = density - u * self.mass
        self.second = (1 + u.square()) * self.mass - u * density

    def product(self, farther: _Tail) -> Tensor:
        """E[relu(t − u) relu(t − v)] for a knot at v ≥ u on the same side."""
        return farther.second + (farther.u - self.u) * farther.first


def _erfc(x: Tensor) -> Tensor:
    """Return 1 − erf(x); ONNX has no erfc, and far in the tail this loses its digits there."""
    return 1 - torch.erf(x) if torch.onnx.is_in_onnx_export() else torch.erfc(x)


def _hardswish_moments(center: Tensor, scale: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and variance of hard-swish: 0, a parabola on (−3, 3), the identity.

    Tails in closed form, the parabola between them by a Gauss–Legendre rule over the part of it
    that lies within 6.5 standard deviations: a sum of positive terms for every scale.
    """
    width = scale.clamp_min(TINY)
    low = in_deviations(-3 - center, width)
    high = in_deviations(3 - center, width)
    value = torch.nn.functional.hardswish(center)
    x, w = as_tensors(legendre_rule(36), center)
    left, right = low.clamp(-6.5, 6.5), high.clamp(-6.5, 6.5)
    half = 0.5 * (right - left)
    t = (0.5 * (right + left)).unsqueeze(1) + half.unsqueeze(1) * x  # (C, K)
    weight = half.unsqueeze(1) * gaussian_density(t) * w
    z = center.unsqueeze(1) + scale.unsqueeze(1) * t
    parabola = z * (z + 3) / 6 - value.unsqueeze(1)
    below = 0.5 * _erfc(-low * math.sqrt(0.5))
    above = 0.5 * _erfc(high * math.sqrt(0.5))
    density = gaussian_density(high)
    offset = center - value  # beyond 3, φ − φ(center) = offset + scale·t
    mean = (parabola * weight).sum(1) - value * below + offset * above + scale * density
    variance = (
        ((parabola - mean.unsqueeze(1)).square() * weight).sum(1)
        + (value + mean).square() * below
        + (offset - mean).square() * above
        + 2 * (offset - mean) * scale * density
        + scale.square() * (high * density + above)
    )
    return value + mean, variance.clamp_min(0.0)


def gaussian_density(t: Tensor) -> Tensor:
    """Return the standard normal density."""
    return torch.exp(-0.5 * t.square()) * (1 / math.sqrt(2 * math.pi))
