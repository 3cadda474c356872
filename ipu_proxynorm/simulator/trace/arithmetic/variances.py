"""Variances and standard deviations as PopTorch takes them apart, rounded after each step."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Sequence

import torch

aten = torch.ops.aten
#: Whether the root is taken, and whether the mean is a result, too.
_KINDS = {
    aten.var.correction: (False, False),
    aten.std.correction: (True, False),
    aten.var_mean.correction: (False, True),
    aten.std_mean.correction: (True, True),
}


def concerns(function: Any) -> bool:
    """Tell whether an operator is a variance, a standard deviation, or one with the mean."""
    return function in _KINDS


def taken_apart(
    emit: Callable[..., Any], function: Any, args: Sequence[Any], kwargs: Dict[str, Any]
) -> Any:
    """Emit the operators that ``calculateVarMean`` makes (ArithmeticOps.cpp:211-275).

    Any correction but 0 is taken for 1, as there.

    Args:
        emit: takes an operator, its arguments and keywords.
        function: one that ``concerns`` tells of.
        args: its arguments: the input, and dimensions.
        kwargs: ``correction`` and ``keepdim``.

    """
    x = args[0]
    dims = list(args[1] or []) if len(args) > 1 else list(kwargs.get("dim") or [])
    dims = [dim % max(x.dim(), 1) for dim in dims] or list(range(x.dim()))
    keepdim = bool(kwargs.get("keepdim", False))
    centre = emit(aten.mean.dim, [x, dims, True], {})
    apart = emit(aten.sub.Tensor, [x, centre], {})
    result = emit(aten.mean.dim, [emit(aten.mul.Tensor, [apart, apart], {}), dims, keepdim], {})
    if kwargs.get("correction"):
        size = math.prod(x.shape[dim] for dim in dims)
        factor = size / (size - 1) if size > 1 else math.inf
        result = emit(aten.mul.Tensor, [result, factor], {})
    root, with_mean = _KINDS[function]
    if root:
        result = emit(aten.sqrt.default, [result], {})
    if not with_mean:
        return result
    shape = result.shape
    return result, centre if keepdim else emit(aten.view.default, [centre, list(shape)], {})
