"""Group Norm and Layer Norm of float16, rounded where the device rounds.

PopART keeps mean and 1/sigma in the input's type (``op/groupnorm.cpp:44-52``; its Layer Norm is
one of one group), and Poplibs takes the mean off, scales and shifts in operators of their own
(``poplin/Norms.cpp``: ``normWhiten``, ``normalise``). The statistics' sums are float32's. The
variance is that of the rounded mean: the mean square less the mean's square, no less than 0
(``poplin/codelets/InverseStdDeviation.cpp``).
"""

from __future__ import annotations

import math
from typing import Any, Callable, Optional, Sequence, Tuple

import torch

aten = torch.ops.aten
NORMS = frozenset({"native_group_norm", "native_layer_norm"})


def _about(
    emit: Callable[..., torch.Tensor],
    mean: torch.Tensor,
    rounded: torch.Tensor,
    inv_std: torch.Tensor,
    eps: float,
    stable: bool,
) -> torch.Tensor:
    """Return 1/sigma as computed with the rounded mean, given the exact mean and 1/sigma."""
    apart = emit(aten.sub.Tensor, mean, rounded)
    shift = emit(aten.mul.Tensor, apart, apart if stable else emit(aten.add.Tensor, mean, rounded))
    variance = emit(aten.add.Tensor, emit(aten.pow.Tensor_Scalar, inv_std, -2), shift)  # with eps
    return emit(aten.rsqrt.default, emit(aten.clamp_min.default, variance, eps))


def normalized(
    recorder: Any,
    rounded: Callable[[torch.Tensor, torch.dtype], torch.Tensor],
    name: str,
    args: Sequence[Any],
    stable: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Emit a norm of a float16 input and return its result, mean and 1/sigma, all float16.

    Args:
        recorder: takes the operations.
        rounded: returns a float32 tensor in the type asked for, as the device rounds.
        name: the name of the norm, one of `NORMS`.
        args: the operator's.
        stable: compute the variance as the mean square distance from the mean, instead of the mean
            square less the mean's square (``enableStableNorm``).

    """
    x = args[0]

    def emit(function: Any, *given: Any, **options: Any) -> torch.Tensor:
        return recorder.emit(function, list(given), options)

    def step(function: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        # A half operand makes torch compute in float32 and round to nearest: not done here, as the
        # device may round stochastically.
        return rounded(emit(function, single(left), single(right)), torch.float16)

    def single(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float32:
            return tensor
        return emit(aten._to_copy.default, tensor, dtype=torch.float32)

    grouped = name == "native_group_norm"
    rows = x
    if grouped:
        weight, bias, *sizes, eps = args[1:]
        count, channels, _, groups = sizes
    else:
        shape, weight, bias, eps = args[1:5]
        outer = list(x.shape[: x.dim() - len(shape)])
        sizes = [math.prod(outer), 1, math.prod(shape), 1]
        rows = emit(aten.reshape.default, x, sizes[:3])
    # By the norm itself: torch's variance over a part of a tensor takes 20 times as long on a CPU.
    given = [single(rows), None, None, *sizes, eps]
    _, *statistics = recorder.emit(aten.native_group_norm.default, given, {})
    if not grouped:
        each = [*outer, *[1] * len(shape)]
        statistics = [emit(aten.view.default, statistic, each) for statistic in statistics]
    exact, inv_std = statistics
    mean = rounded(exact, torch.float16)
    inv_std = rounded(_about(emit, exact, single(mean), inv_std, eps, stable), torch.float16)
    ones = [1] * (x.dim() - 2)

    def spread(statistic: torch.Tensor) -> torch.Tensor:
        if not grouped:
            return statistic
        each = emit(aten.view.default, statistic, [count, groups, 1])
        each = emit(aten.expand.default, each, [count, groups, channels // groups])
        return emit(aten.reshape.default, each, [count, channels, *ones])

    def affine(parameter: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        if parameter is None:
            return None
        half = rounded(parameter, torch.float16)
        return emit(aten.view.default, half, [1, channels, *ones]) if grouped else half

    y = step(aten.sub.Tensor, x, spread(mean))
    y = step(aten.mul.Tensor, y, spread(inv_std))
    scale, shift = affine(weight), affine(bias)
    if scale is not None:
        y = step(aten.mul.Tensor, y, scale)
    if shift is not None:
        y = step(aten.add.Tensor, y, shift)
    return y, mean, inv_std
