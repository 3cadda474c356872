"""Proxy Norm and the norms beneath it as functions of tensors."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipu_proxynorm.norm.activations import ActivationLike, resolve_activation
from ipu_proxynorm.norm.moments import proxy_moments


def proxy_norm(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    proxy_weight: Tensor,
    proxy_bias: Tensor,
    activation: ActivationLike = "relu",
    *,
    eps: float = 0.03,
    method: str = "exact",
    n: int = 200,
) -> Tensor:
    """Affine, activation and proxy normalization of a normalized pre-activation.

    Args:
        y: output of a norm without affine, shape (N, C, *).
        weight: γ, shape (C,).
        bias: β, shape (C,).
        proxy_weight: γ̃, shape (C,), initially 0.
        proxy_bias: β̃, shape (C,), initially 0.
        activation: φ, by name, module or callable.
        eps: ε, added to the proxy's variance.
        method: how the proxy's moments are taken, see `proxy_moments`.
        n: number of quantiles of ``sampled``.

    Returns:
        (φ(γ y + β) − E[φ(γ Ỹ + β)]) / sqrt(Var[φ(γ Ỹ + β)] + ε), shape and dtype of y.

    """
    known = resolve_activation(activation)
    mean, var = proxy_moments(weight, bias, proxy_weight, proxy_bias, known, method=method, n=n)
    z = known(y * per_channel(weight.to(y.dtype), y) + per_channel(bias.to(y.dtype), y))
    return normalize_activation(z, mean, torch.rsqrt(var + eps))


def normalize_activation(z: Tensor, mean: Tensor, inv_std: Tensor) -> Tensor:
    """Return (z − mean)·inv_std per channel, for z (N, C, *), in z's dtype.

    The moments' float32 takes over by type promotion: with a float16 subtraction the gradient of
    the mean, a sum over everything a channel holds, could overflow.
    """
    return ((z - per_channel(mean, z)) * per_channel(inv_std, z)).to(z.dtype)


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter (C,) as (1, C, 1, …) so that it broadcasts over x (N, C, *)."""
    return parameter.view(1, -1, *([1] * (x.dim() - 2)))


def group_norm(
    x: Tensor,
    groups: int,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalization of x (N, C, *) over contiguous groups, also of an empty batch."""
    if weight is not None:
        weight = weight.to(x.dtype)
    if bias is not None:
        bias = bias.to(x.dtype)
    return F.group_norm(x, groups, weight, bias, eps)


def group_norm_act(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    activation: ActivationLike = "relu",
    moments: Optional[Tuple[Tensor, Tensor]] = None,
    *,
    eps: float = 1e-5,
    proxy_eps: float = 0.03,
) -> Tensor:
    """Group Norm, affine, activation and, given its moments, Proxy Norm as one unit.

    With a = 1/sqrt(Var + ε) > 0, ReLU folds: relu(z)·a − E·a = max(z·a − E·a, −E·a), so the unit
    is a norm with weight γ·a and bias (β − E)·a, then a lower clamp per channel.

    Args:
        x: shape (N, C, *).
        groups: number of contiguous channel groups, a divisor of C.
        weight: γ, shape (C,).
        bias: β, shape (C,).
        activation: φ.
        moments: mean and variance of the proxy, each (C,); None leaves Proxy Norm out.
        eps: of the norm.
        proxy_eps: ε of Proxy Norm.

    Returns:
        Shape and dtype of x.

    """
    known = resolve_activation(activation)
    if moments is None:
        return known(group_norm(x, groups, weight, bias, eps))
    mean, inv_std = moments[0], torch.rsqrt(moments[1] + proxy_eps)
    if known.name == "relu":
        y = group_norm(x, groups, weight * inv_std, (bias - mean) * inv_std, eps)
        return torch.maximum(y, per_channel(-mean * inv_std, y).to(y.dtype))
    return normalize_activation(known(group_norm(x, groups, weight, bias, eps)), mean, inv_std)
