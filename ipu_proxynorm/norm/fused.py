"""Norm, affine, activation and Proxy Norm with a backward pass of their own, for CPU and GPU.

The proxy costs almost nothing here: its moments and their derivatives are prepared per channel,
the affine (and for piecewise-linear activations everything else) goes into the norm's own, what
remains is done in place, and the backward pass reads each tensor as rarely as it can. Values and
gradients are those of the plain operators in `functional`, which also give the gradients where they
are to be differentiated again (``create_graph=True``).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.execution import may_use_custom_backward, own_precision
from ipu_proxynorm.norm.functional import native_float16, proxied_unit, unit_constants
from ipu_proxynorm.norm.moments.derivatives import moment_derivatives
from ipu_proxynorm.norm.moments.gaussian import at_least_float32, proxy_moments
from ipu_proxynorm.norm.pending import finished

aten = torch.ops.aten


class Prepared(NamedTuple):
    """All that the block needs per channel, and that holds until the parameters change; each (C,).

    With T = Σg and R = Σg·out over everything a channel holds, g the gradient of the output, the
    moments' part of the gradient is linear in them: the proxy's center receives
    T·center_by_sum + R·center_by_product, its scale likewise.
    """

    weight: Tensor  # of the norm, with what folds into it
    bias: Tensor
    mean: Tensor
    inv_std: Tensor
    lower: Tensor  # what an output of zero becomes, or the bounds of a folded clamp
    upper: Tensor
    center_by_sum: Tensor
    center_by_product: Tensor
    scale_by_sum: Tensor
    scale_by_product: Tensor


@torch.no_grad()
def prepare(
    weight: Tensor,
    bias: Tensor,
    proxy_weight: Tensor,
    proxy_bias: Tensor,
    activation: Activation,
    *,
    proxy_eps: float = 0.03,
    method: str = "exact",
    n: int = 200,
) -> Prepared:
    """Prepare a block for γ, β, γ̃, β̃, each (C,)."""
    weight, bias, proxy_weight, proxy_bias = map(
        at_least_float32, (weight, bias, proxy_weight, proxy_bias)
    )
    center = torch.addcmul(bias, weight, proxy_bias)
    scale = torch.addcmul(weight, weight, proxy_weight)
    with own_precision(center.device.type):
        moments = moment_derivatives(center, scale, activation, method=method, n=n)
    mean, variance = moments.mean, moments.variance
    inv_std = torch.rsqrt(variance + proxy_eps)
    by_variance = (inv_std * inv_std).mul_(-0.5)
    lower = upper = (mean * inv_std).neg_()
    clamp = activation.clamp
    if clamp is not None:
        bias = torch.addcmul(lower, bias, inv_std, value=clamp.scale)
        weight = weight * inv_std
        if clamp.scale != 1 or clamp.offset != 0:
            weight = weight * clamp.scale
            bias = bias.add_(inv_std, alpha=clamp.offset)
        if clamp.upper < float("inf"):
            upper = torch.add(lower, inv_std, alpha=clamp.upper)
        if clamp.lower > -float("inf"):
            lower = torch.add(lower, inv_std, alpha=clamp.lower) if clamp.lower else lower
    elif activation.homogeneous:
        weight, bias = weight * inv_std, bias * inv_std
    return Prepared(
        weight,
        bias,
        mean,
        inv_std,
        lower,
        upper,
        (inv_std * moments.mean_by_center).neg_(),
        by_variance * moments.variance_by_center,
        (inv_std * moments.mean_by_scale).neg_(),
        by_variance * moments.variance_by_scale,
    )


def fused_norm_act(
    x: Tensor,
    groups: int,
    parameters: Tuple[Tensor, Tensor, Tensor, Tensor],
    activation: Activation,
    prepared: Prepared,
    *,
    eps: float = 1e-5,
    proxy_eps: float = 0.03,
    method: str = "exact",
    n: int = 200,
    recompute: bool = False,
) -> Tensor:
    """Apply the block to x (N, C, *); gradients reach x and γ, β, γ̃, β̃.

    Args:
        x: shape (N, C, *), at least one value.
        groups: number of contiguous channel groups.
        parameters: γ, β, γ̃, β̃, each (C,), that ``prepared`` was made of.
        activation: one whose ``backward`` is known.
        prepared: see `prepare`.
        eps: the ε of the norm.
        proxy_eps: what ``prepared`` was made with, for gradients that are differentiated again.
        method: likewise.
        n: likewise.
        recompute: keep no pre-activation for the backward pass, but compute it again from x.

    Returns:
        Shape, dtype and memory format of x.

    """
    if not native_float16(x):
        return fused_norm_act(
            x.float(),
            groups,
            parameters,
            activation,
            prepared,
            eps=eps,
            proxy_eps=proxy_eps,
            method=method,
            n=n,
            recompute=recompute,
        ).to(x.dtype)
    x = x.contiguous(memory_format=memory_format(x))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
        out: Tensor = _Block.apply(
            x, *parameters, prepared, activation, groups, eps, (proxy_eps, method, n), recompute
        )
        return out
    return _forward(x, groups, activation, prepared, eps)[0]


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format that x is dense in, contiguous where there is none."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def _forward(
    x: Tensor, groups: int, activation: Activation, prepared: Prepared, eps: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output, pre-activation (of activations that do not fold) and the norm's statistics."""
    y, mean, rstd = _group_norm(x, groups, prepared.weight, prepared.bias, eps)
    clamp = activation.clamp
    if clamp is not None:
        if clamp.lower > -float("inf"):
            y.clamp_min_(_over(prepared.lower, y))
        if clamp.upper < float("inf"):
            y.clamp_max_(_over(prepared.upper, y))
        return y, y, mean, rstd
    z = activation(y)
    if activation.homogeneous:
        z.add_(_over(prepared.lower, z))
    elif z.dtype in (torch.float16, torch.bfloat16):
        z = ((z - _channels(prepared.mean, z)) * _channels(prepared.inv_std, z)).to(z.dtype)
    else:
        z = z.clone() if z is y else z
        z.sub_(_channels(prepared.mean, z)).mul_(_channels(prepared.inv_std, z))
    return z, y, mean, rstd


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        proxy_weight: Tensor,
        proxy_bias: Tensor,
        prepared: Prepared,
        activation: Activation,
        groups: int,
        eps: float,
        rule: Tuple[float, str, int],
        recompute: bool,
    ) -> Tensor:
        out, y, mean, rstd = _forward(x, groups, activation, prepared, eps)
        folds = activation.clamp is not None or activation.homogeneous
        ctx.save_for_backward(
            x,
            out,
            None if folds or recompute else y,
            mean,
            rstd,
            weight,
            bias,
            proxy_weight,
            proxy_bias,
            *prepared,
        )
        ctx.activation, ctx.groups, ctx.eps, ctx.rule = activation, groups, eps, rule
        ctx.overwritten = False
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:  # type: ignore[override]
        with own_precision(grad.device.type):  # somebody may call backward() under autocast
            if torch.is_grad_enabled() or not may_use_custom_backward(grad):
                return _Block._of_plain_operators(ctx, grad, again=torch.is_grad_enabled())
            return _Block._backward(ctx, grad)

    @staticmethod
    @torch.enable_grad()
    def _of_plain_operators(ctx: Any, grad: Tensor, again: bool) -> Tuple[Optional[Tensor], ...]:
        """Return the gradients of plain operators, for several gradients at once, too (vmap).

        Args:
            ctx: what is kept.
            grad: of the output.
            again: they are to be differentiated again (``create_graph=True``).
        """
        x, *_, gamma, beta, proxy_weight, proxy_bias = ctx.saved_tensors[:9]
        inputs = x, gamma, beta, proxy_weight, proxy_bias
        proxy_eps, method, n = ctx.rule
        mean, variance = proxy_moments(*inputs[1:], ctx.activation, method=method, n=n)
        scale = torch.rsqrt(variance + proxy_eps)
        constants = unit_constants(gamma, beta, mean, scale, ctx.activation)
        out = finished(proxied_unit(x, ctx.groups, constants, ctx.activation, eps=ctx.eps))
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=again, allow_unused=True))
        grads = (next(found) if tensor.requires_grad else None for tensor in inputs)
        return (*grads, None, None, None, None, None, None)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, out, y, mean, rstd, gamma, _, proxy_weight, proxy_bias, *rest = ctx.saved_tensors
        prepared = Prepared(*rest)
        activation: Activation = ctx.activation
        clamp = activation.clamp
        grad = grad.contiguous(memory_format=memory_format(x))
        weight, factor, product = prepared.weight, prepared.inv_std, None
        if clamp is not None:
            factor = factor if clamp.scale == 1 else factor * clamp.scale
            upper_bound = clamp.upper < float("inf")
            total, product = _channel_sums(grad, out if upper_bound else None)
            if clamp.lower > -float("inf"):
                local = torch.gt(out, _over(prepared.lower, out), out=torch.empty_like(out))
                if upper_bound:
                    local.mul_(out < _over(prepared.upper, out))
                local.mul_(grad)
            elif upper_bound:
                local = torch.lt(out, _over(prepared.upper, out), out=torch.empty_like(out))
                local.mul_(grad)
            else:
                local = grad
        elif activation.homogeneous:
            total, _ = _channel_sums(grad)
            local = _derivative(activation, grad, out - _over(prepared.lower, out))
        else:
            total, product = _channel_sums(grad, out)
            if y is None or ctx.overwritten:
                y = _group_norm(x, ctx.groups, weight, prepared.bias, ctx.eps)[0]
            else:
                y = y.data  # is overwritten, which autograd need not know: see ctx.overwritten
            if activation.backward_ is not None:
                ctx.overwritten = True  # should this graph be kept for another backward pass
                local = activation.backward_(grad, y)
            else:
                local = _derivative(activation, grad, y)
            weight = weight * prepared.inv_std
        del y
        grad_x, by_weight, by_bias = _group_norm_backward(
            local, x, mean, rstd, weight, ctx.groups, ctx.needs_input_grad[0]
        )
        by_weight, by_bias = by_weight.to(factor.dtype), by_bias.to(factor.dtype)
        if product is None:  # Σg·out from what is known already
            beyond = total - by_bias if clamp is not None else total
            product = (weight * by_weight).addcmul_(prepared.bias, by_bias)
            product.addcmul_(prepared.lower, beyond)
        by_center = (total * prepared.center_by_sum).addcmul_(product, prepared.center_by_product)
        by_scale = (total * prepared.scale_by_sum).addcmul_(product, prepared.scale_by_product)
        grads = (
            (factor * by_weight)
            .addcmul_(proxy_bias, by_center)
            .addcmul_(proxy_weight, by_scale)
            .add_(by_scale),
            torch.addcmul(by_center, factor, by_bias),
            gamma * by_scale,
            gamma * by_center,
        )
        return (grad_x, *(g.to(gamma.dtype) for g in grads), None, None, None, None, None, None)


def _derivative(activation: Activation, grad: Tensor, x: Tensor) -> Tensor:
    assert activation.backward is not None
    return activation.backward(grad, x)


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(1, -1, *([1] * (x.dim() - 2)))


def _over(parameter: Tensor, x: Tensor) -> Tensor:
    return _channels(parameter, x).to(x.dtype)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    y, mean, rstd = aten.native_group_norm(x, weight, bias, n, c, x.numel() // (n * c), groups, eps)
    return y.contiguous(memory_format=memory_format(x)), mean, rstd  # a GPU may not keep it


def _group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    groups: int,
    for_input: bool = True,
) -> Tuple[Optional[Tensor], Tensor, Tensor]:
    n, c = x.shape[:2]
    # Always with a gradient of x: without, torch 2.0 fails on channels-last tensors.
    grad_x, by_weight, by_bias = aten.native_group_norm_backward(
        grad, x, mean, rstd, weight, n, c, x.numel() // (n * c), groups, [True, True, True]
    )
    return grad_x if for_input else None, by_weight, by_bias


def _channel_sums(grad: Tensor, out: Optional[Tensor] = None) -> Tuple[Tensor, Optional[Tensor]]:
    """Return Σg and, given out, Σg·out over all but the channels; each (C,)."""
    n, c = grad.shape[:2]
    if not grad.is_contiguous():  # channels-last
        rows = grad.movedim(1, -1).reshape(-1, c)
        return _column_sums(rows, None if out is None else out.movedim(1, -1).reshape(-1, c))
    if out is None or grad.device.type != "cpu":
        dims = tuple(d for d in range(grad.dim()) if d != 1)
        accumulate = _accumulation(grad.dtype)
        total = grad.view(n, c, -1).sum(2, dtype=accumulate).sum(0)
        return total, None if out is None else (grad * out).sum(dims, dtype=accumulate)
    # One pass over both: the gradient of a norm's affine with mean 0 and deviation 1.
    dtype = _accumulation(grad.dtype)
    zeros, ones = torch.zeros(n, 1, dtype=dtype), torch.ones(max(n, c), dtype=dtype)
    _, product, total = aten.native_group_norm_backward(
        *(grad, out, zeros, ones[:n].unsqueeze(1), ones[:c]),
        *(n, c, grad.numel() // (n * c), 1, [False, True, True]),
    )
    return total, product


def _column_sums(rows: Tensor, factor: Optional[Tensor] = None) -> Tuple[Tensor, Optional[Tensor]]:
    """Sum rows, and rows·factor, both (R, C), over R."""
    dtype = _accumulation(rows.dtype)
    if rows.dtype != dtype or rows.device.type != "cpu":
        product = None if factor is None else (rows * factor).sum(0, dtype=dtype)
        return rows.sum(0, dtype=dtype), product
    # Some rows at a time, so that their product stays in a core's cache.
    count = max(1, 2**17 * torch.get_num_threads() // rows.shape[1])
    ones = rows.new_ones(min(count, rows.shape[0]))
    total = rows.new_zeros(rows.shape[1])
    product = None if factor is None else torch.zeros_like(total)
    for start in range(0, rows.shape[0], count):
        part = rows[start : start + count]
        one = ones[: part.shape[0]]
        total.addmv_(part.t(), one)
        if product is not None and factor is not None:
            product.addmv_((part * factor[start : start + count]).t(), one)
    return total, product


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
