"""Proxy Norm and the norms beneath it as functions of tensors, in plain operators."""

from __future__ import annotations

import functools
import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipu_proxynorm.norm.activations import ActivationLike, resolve_activation
from ipu_proxynorm.norm.execution import device_grouping, may_use_custom_backward
from ipu_proxynorm.norm.grouping import regroup_channels
from ipu_proxynorm.norm.moments.gaussian import proxy_moments


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

    In the subtraction the moments' float32 takes over by type promotion: in float16 the gradient of
    the mean, a sum over everything a channel holds, could overflow. The product is of z's dtype,
    since its backward pass keeps the difference.
    """
    difference = (z - per_channel(mean, z)).to(z.dtype)
    return difference * per_channel(inv_std, z).to(z.dtype)


def clamp_channels(y: Tensor, lower: Optional[Tensor], upper: Optional[Tensor]) -> Tensor:
    """Clamp y (N, C, *) to bounds (C,) of each channel; None: no bound.

    ``<`` is one operator on an IPU, ``<=`` three (AtenHandlers.gen.cpp:312), and either lets what
    is no number pass. Where y equals a bound, the gradient goes to y; the custom backward, which
    sees the output only, gives y none there. For the backward pass a select keeps its condition, a
    byte an element (autograd, and PopART's ``where.cpp``); the maximum of two tensors keeps both
    (PopART's ``variadic.cpp``).
    """
    if lower is not None:
        bound = per_channel(lower, y).to(y.dtype)
        y = torch.where(y < bound, bound, y)
    if upper is not None:
        bound = per_channel(upper, y).to(y.dtype)
        y = torch.where(y > bound, bound, y)
    return y


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter (C,) as (1, C, 1, …) so that it broadcasts over x (N, C, *)."""
    return parameter.view(1, -1, *([1] * (x.dim() - 2)))


def group_norm(
    x: Tensor,
    groups: int,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    eps: float = 1e-5,
    *,
    grouping: str = "contiguous",
) -> Tensor:
    """Group normalization of x (N, C, *), also of an empty batch; shape and dtype of x.

    Args:
        x: shape (N, C, *).
        groups: number of channel groups, a divisor of C.
        weight: shape (C,), or None.
        bias: shape (C,), or None.
        eps: added to the variance.
        grouping: ``contiguous`` or ``strided``.

    """
    native = device_grouping()
    if 1 < groups < x.shape[1] and grouping != native:
        weight, bias = (
            None if p is None else regroup_channels(p, groups, grouping, native)
            for p in (weight, bias)
        )
        x = regroup_channels(x, groups, grouping, native, dim=1)
        y = _native_group_norm(x, groups, weight, bias, eps)
        return regroup_channels(y, groups, native, grouping, dim=1)
    return _native_group_norm(x, groups, weight, bias, eps)


def _native_group_norm(
    x: Tensor, groups: int, weight: Optional[Tensor], bias: Optional[Tensor], eps: float
) -> Tensor:
    if not native_float16(x) and may_use_custom_backward(x):
        return _native_group_norm(x.float(), groups, weight, bias, eps).to(x.dtype)
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    # PopTorch takes both or neither (popart_canonicalization/NormalizationOps.cpp:54), and without
    # either, torch 2.0's backward pass of a channels-last tensor on a CPU fails.
    if weight is None and (bias is not None or x.device.type == "cpu"):
        weight = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    if bias is None and weight is not None:
        bias = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)
    return F.group_norm(x, groups, weight, bias, eps)


def native_float16(x: Tensor) -> bool:
    """Whether torch normalizes x in its own dtype: on a CPU, torch 2.0 has no float16 norms."""
    return x.dtype != torch.float16 or x.device.type != "cpu" or _cpu_has_float16_norms()


@functools.lru_cache(maxsize=None)
def _cpu_has_float16_norms() -> bool:
    try:
        F.group_norm(torch.zeros(1, 1, 2, dtype=torch.float16), 1)
    except RuntimeError:
        return False
    return True


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
    grouping: str = "contiguous",
) -> Tensor:
    """Group Norm, affine, activation and, given its moments, Proxy Norm as one unit.

    With a = 1/sqrt(Var + ε) > 0, ReLU folds: relu(z)·a − E·a = max(z·a − E·a, −E·a), so the unit
    is a norm with weight γ·a and bias (β − E)·a, then a lower clamp per channel. Every clamp folds
    so (identity, ReLU, ReLU6, hard-tanh, hard-sigmoid); of leaky ReLU the scale does.

    Args:
        x: shape (N, C, *).
        groups: number of channel groups, a divisor of C.
        weight: γ, shape (C,).
        bias: β, shape (C,).
        activation: φ.
        moments: mean and variance of the proxy, each (C,); None leaves Proxy Norm out.
        eps: the ε of the norm.
        proxy_eps: ε of Proxy Norm.
        grouping: ``contiguous`` or ``strided`` channel groups.

    Returns:
        Shape and dtype of x.

    """
    if not native_float16(x) and may_use_custom_backward(x):
        return group_norm_act(
            x.float(),
            groups,
            weight.float(),
            bias.float(),
            activation,
            moments,
            eps=eps,
            proxy_eps=proxy_eps,
            grouping=grouping,
        ).to(x.dtype)
    known = resolve_activation(activation)

    def norm(weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(x, groups, weight, bias, eps, grouping=grouping)

    if moments is None:
        return known(norm(weight, bias))
    mean, inv_std = moments[0], torch.rsqrt(moments[1] + proxy_eps)
    clamp = known.clamp
    if clamp is not None:
        if clamp.scale != 1:
            weight, bias = weight * clamp.scale, bias * clamp.scale
        y = norm(weight * inv_std, (bias - mean + clamp.offset) * inv_std)
        return clamp_channels(
            y,
            (clamp.lower - mean) * inv_std if clamp.lower > -math.inf else None,
            (clamp.upper - mean) * inv_std if clamp.upper < math.inf else None,
        )
    if known.homogeneous:
        z = known(norm(weight * inv_std, bias * inv_std))
        return (z - per_channel(mean * inv_std, z)).to(z.dtype)
    return normalize_activation(known(norm(weight, bias)), mean, inv_std)
