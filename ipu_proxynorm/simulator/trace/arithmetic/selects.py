"""The gradient of a select as PopART computes it: a product with the condition, not a select."""

from __future__ import annotations

from typing import Any, Callable, Optional, Sequence, Tuple

import torch

aten = torch.ops.aten


def _product(
    node: str, function: Any, args: Sequence[Any]
) -> Optional[Tuple[torch.Tensor, torch.Tensor, bool]]:
    """Return gradient, condition and where it passes, if an operation is of a select's gradient."""
    if node.startswith("WhereBackward") and function is aten.where.self:
        condition, first, second = args
        if second.dim() == 0 < first.dim():  # where(condition, gradient, 0)
            return first, condition, True
        if first.dim() == 0 < second.dim():
            return second, condition, False
    if node.startswith("MaskedFillBackward") and function is aten.masked_fill.Scalar:
        return args[0], args[1], False
    return None


def gradient(
    node: str, function: Any, args: Sequence[Any], emit: Callable[..., torch.Tensor]
) -> Optional[torch.Tensor]:
    """Emit the gradient of ``where`` or ``masked_fill`` as PopART does, if an operation is part.

    The gradient times the condition as a number: what is infinite or no number where the select
    took the other side becomes NaN, not 0 (``popart/popx/op/wherex.cpp:200-286``).

    Args:
        node: name of the autograd node at work.
        function: the operator that torch calls.
        args: its arguments.
        emit: runs an operator, given with arguments and keywords, by the device's types.

    """
    found = _product(node, function, args)
    if found is None:
        return None
    upstream, condition, passes = found
    if not passes:
        condition = emit(aten.logical_not.default, [condition], {})
    factor = emit(aten._to_copy.default, [condition], {"dtype": upstream.dtype})
    return emit(aten.mul.Tensor, [upstream, factor], {})
