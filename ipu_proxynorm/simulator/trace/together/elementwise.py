"""How elementwise operators take the tensors of several micro-batches."""

from __future__ import annotations

from typing import Any, Sequence

from ..consistency import Traced
from ..tape import Operation, Slot, makes
from .arguments import replaced_in, tensors_of
from .values import STACKED, Values, aten


def elementwise(values: Values, step: Operation) -> bool:
    """Operators whose results' elements depend on one element of each tensor, broadcast."""
    outputs = makes(step)
    if not outputs or step.kwargs.get("out") is not None:
        return False
    shape = values.shape(outputs[0])
    tensors = tensors_of(step)
    types = {values.traced[slot].dtype for slot in tensors}
    if len(types) > 1 and any(not values.shape(s) and values.differs(s) for s in tensors):
        return False  # a number has less say in the type of the result than a tensor
    if _broadcasts_folded(values, tensors, shape):
        dim = _common_fold(values, tensors, len(shape))
        instead = {s: values.folded(s, step, dim) for s in tensors if values.differs(s)}
        values.call(step, replaced_in(step, instead), step.kwargs, [dim] * len(outputs))
        return True
    instead = {s: aligned(values, s, step, len(shape)) for s in tensors if values.differs(s)}
    values.call(step, replaced_in(step, instead), step.kwargs, [STACKED] * len(outputs))
    return True


def _broadcasts_folded(values: Values, tensors: Sequence[Slot], shape: Sequence[int]) -> bool:
    """Tell whether tensors broadcast to this shape, micro-batches folded in the first dimension."""
    if not shape:
        return False
    for slot in tensors:
        own = values.shape(slot)
        if values.differs(slot):
            if len(own) != len(shape) or own[0] != shape[0]:
                return False
        elif len(own) == len(shape) and own[0] != 1:
            return False
    return True


def _common_fold(values: Values, tensors: Sequence[Slot], rank: int) -> int:
    """Return the dimension that all tensors are folded in already, if another than the first."""
    if any(not values.differs(slot) for slot in tensors):
        return 0
    for dim in range(1, rank):
        if all(values.has(slot, dim) for slot in tensors):
            return dim
    return 0


def aligned(values: Values, slot: Slot, step: Operation, rank: int) -> Slot:
    """Return a tensor stacked, with dimensions of one behind the first up to a rank."""
    stacked, shape = values.stacked(slot, step), values.shape(slot)
    if len(shape) >= rank:
        return stacked
    wider = (values.count, *[1] * (rank - len(shape)), *shape)
    made = Traced(wider, values.traced[slot].dtype)
    return values.emit(aten.reshape.default, [stacked, list(wider)], step, made)


def written_elementwise(values: Values, step: Operation) -> bool:
    """Elementwise operators that write over their first argument."""
    target = step.args[0]
    if not isinstance(target, Slot) or not values.differs(target):
        return False
    tensors = tensors_of(step)
    shape = values.shape(target)
    if _broadcasts_folded(values, tensors, shape) and values.has(target, 0):
        form: Any = 0
        instead = {s: values.folded(s, step) for s in tensors if values.differs(s)}
    else:
        form = STACKED
        instead = {s: aligned(values, s, step, len(shape)) for s in tensors if values.differs(s)}
    own = instead[target]
    function = Operation(
        step.function, replaced_in(step, instead), dict(step.kwargs), None, step.origin, keeps=True
    )
    values.steps.append(function)
    values.set(target, form, own)
    return True


def like(values: Values, step: Operation) -> bool:
    """Operators that take shape and type of a tensor, and nothing else."""
    source = step.args[0]
    if len(values.shape(source)) == 0 or values.shape(step.outputs) != values.shape(source):
        return False
    values.call(step, [values.folded(source, step), *step.args[1:]], step.kwargs, [0])
    return True
