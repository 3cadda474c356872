"""Proxy Norm and the norms beneath it as functions of tensors, in plain operators."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipu_proxynorm.norm.activations import Activation, ActivationLike, resolve_activation
from ipu_proxynorm.norm.execution import device_grouping, may_use_custom_backward
from ipu_proxynorm.norm.grouping import regroup_channels
from ipu_proxynorm.norm.moments.gaussian import proxy_moments
from ipu_proxynorm.norm.pending import Output, Pending, finished, per_channel, shifted


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

    Raises:
        ValueError: y is not of shape (N, C, *).

    """
    check_channels(y, weight.shape[0])
    known = resolve_activation(activation)
    mean, var = proxy_moments(weight, bias, proxy_weight, proxy_bias, known, method=method, n=n)
    z = known(y * per_channel(weight.to(y.dtype), y) + per_channel(bias.to(y.dtype), y))
    return finished(Pending(shifted(z, -mean), torch.rsqrt(var + eps)))


def check_channels(x: Tensor, num_features: int) -> None:
    """Refuse an x that is not of shape (N, num_features, *).

    Raises:
        ValueError: that.
    """
    if x.dim() < 2 or x.shape[1] != num_features:
        raise ValueError(f"expected an input of shape (N, {num_features}, *), got {tuple(x.shape)}")


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
    if moments is None:
        return known(group_norm(x, groups, weight, bias, eps, grouping=grouping))
    mean, variance = moments
    constants = unit_constants(weight, bias, mean, torch.rsqrt(variance + proxy_eps), known)
    return finished(proxied_unit(x, groups, constants, known, eps=eps, grouping=grouping))


class Constants(NamedTuple):
    """What a proxy-normalized unit of plain operators needs per channel; each (C,).

    Attributes:
        weight: of the norm, with what folds into it.
        bias: likewise.
        lower: what a folded clamp is bounded by.
        upper: likewise.
        shift: added behind the activation.
        scale: multiplied with thereafter, or by who reads it.
    """

    weight: Tensor
    bias: Tensor
    lower: Optional[Tensor] = None
    upper: Optional[Tensor] = None
    shift: Optional[Tensor] = None
    scale: Optional[Tensor] = None


def unit_constants(
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    scale: Tensor,
    activation: Activation,
    folds: bool = True,
    may_shift: bool = False,
) -> Constants:
    """Return a unit's constants, of one layer or of several joined, in the moments' dtype.

    Args:
        weight: γ, shape (C,).
        bias: β, shape (C,).
        mean: of the proxy's activation, shape (C,).
        scale: of Proxy Norm, 1/sqrt(Var + ε), shape (C,).
        activation: φ.
        folds: what can be folded into the norm is; else it is all shift and scale.
        may_shift: leave the shift of a folded ReLU out of the norm's bias; see `proxied_unit`.
    """
    clamp = activation.clamp if folds else None
    if clamp is not None and not may_shift:
        offset = mean if clamp.offset == 0 else mean - clamp.offset
        if clamp.scale != 1:
            weight, bias = weight * clamp.scale, bias * clamp.scale
        shift = mean * scale
        return Constants(
            weight=weight * scale,
            bias=(bias - offset) * scale,
            lower=_bound(clamp.lower, scale, shift),
            upper=_bound(clamp.upper, scale, shift),
        )
    if folds and (activation.homogeneous or may_shift):
        return Constants(weight=weight * scale, bias=bias * scale, shift=-mean * scale)
    return Constants(weight, bias, shift=-mean, scale=scale)


def _bound(bound: float, scale: Tensor, shift: Tensor) -> Optional[Tensor]:
    """Return (bound − mean)·scale, shift being mean·scale."""
    if math.isinf(bound):
        return None
    return scale * bound - shift if bound else -shift


def proxied_unit(
    x: Tensor,
    groups: int,
    constants: Constants,
    activation: Activation,
    *,
    eps: float = 1e-5,
    grouping: str = "contiguous",
    shift_too: bool = False,
    leave_shift: bool = False,
) -> Output:
    """Return norm, affine, activation and Proxy Norm of x, the scale left pending if there is one.

    Args:
        x: shape (N, C, *).
        groups: number of channel groups, a divisor of C.
        constants: see `unit_constants`.
        activation: φ.
        eps: of the norm.
        grouping: ``contiguous`` or ``strided`` channel groups.
        shift_too: leave the shift pending, too.
        leave_shift: leave the shift of a folded ReLU pending: below its bound it is 0 then.
    """
    if activation.clamp is not None and constants.shift is not None and constants.scale is None:
        if leave_shift:
            y = group_norm(x, groups, constants.weight, constants.bias, eps, grouping=grouping)
            return Pending(activation(y), shift=constants.shift)
        bias = constants.bias + constants.shift
        constants = Constants(constants.weight, bias, lower=constants.shift)
    y = group_norm(x, groups, constants.weight, constants.bias, eps, grouping=grouping)
    if constants.lower is not None or constants.upper is not None or constants.shift is None:
        return clamp_channels(y, constants.lower, constants.upper)
    z = activation(y)
    if shift_too and constants.scale is not None:
        return Pending(z, constants.scale, constants.shift)
    z = shifted(z, constants.shift)
    return z if constants.scale is None else Pending(z, constants.scale)
