"""Selects by a comparison, as operators that a CPU has vectorised: clamps and masks of floats.

torch's CPU kernels of ``where``, and of all that reads or makes bools, compute element by element:
a select of half a million numbers takes 1.3 ms, a clamp 0.05 ms.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional, Set

import torch

from ..tape import Block, Operation, Slot, Step
from .graph import Graph, is_named

aten = torch.ops.aten
_BELOW = ("le.Tensor", "lt.Tensor")
_ABOVE = ("ge.Tensor", "gt.Tensor")
_FEW = 4096  # elements: below, a kernel costs nothing anyway


def _kernel(function: Callable) -> Callable:
    """Mark a function of tensors as one that makes a new tensor of its own, on any device."""
    function.is_kernel = True  # type: ignore[attr-defined]
    function.runs_anywhere = True  # type: ignore[attr-defined]
    return function


def _as_float(compare: Callable, name: str) -> Callable:
    def kernel(y: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        return compare(y, bound, out=torch.empty_like(y))

    kernel.__name__ = name
    return _kernel(kernel)


# Comparisons whose results are 0 and 1 in the numbers' own type.
_COMPARISONS = {
    name: _as_float(getattr(torch, name[:2]), f"{name[:2]}_as_float") for name in _BELOW + _ABOVE
}


@_kernel
def clamp_below(y: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Return the bound where y is less, as ``where(y <= bound, bound, y)`` does: y at a NaN."""
    return torch.clamp_min(y, bound.nan_to_num(-torch.inf, torch.inf, -torch.inf))


@_kernel
def clamp_above(y: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Return the bound where y is greater, as ``where(y >= bound, bound, y)`` does."""
    return torch.clamp_max(y, bound.nan_to_num(torch.inf, torch.inf, -torch.inf))


@_kernel
def clamp_below_(y: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Write `clamp_below` over y."""
    return y.clamp_min_(bound.nan_to_num(-torch.inf, torch.inf, -torch.inf))


@_kernel
def clamp_above_(y: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Write `clamp_above` over y."""
    return y.clamp_max_(bound.nan_to_num(torch.inf, torch.inf, -torch.inf))


def _call(
    function: Callable, args: List[Any], like: Operation, outputs: Slot, graph: Graph
) -> Operation:
    known = {slot: graph.traced[slot] for slot in args if slot in graph.traced}
    made = {outputs: graph.traced[outputs]} if outputs in graph.traced else {}
    return Operation(function, args, {}, outputs, like.origin, reads=known, makes=made)


class _Select:
    """A comparison of many numbers with few, whose every use has a vectorised form.

    Args:
        graph: the graph of the block.
        step: the comparison.

    """

    def __init__(self, graph: Graph, step: Operation) -> None:
        self.step = step
        self.condition: Slot = step.outputs
        self.y, self.bound = step.args
        self._graph = graph
        #: The select that clamps; the condition follows from its result as well.
        self.clamped: Optional[Operation] = None

    def forms(self) -> Optional[List[Operation]]:
        """Return the operations that use the condition; None if one has no such form."""
        found = []
        for user in self._graph.read_by(self.condition):
            if not isinstance(user, Operation) or not self._has_form(user):
                return None
            found.append(user)
            if user.args[1] == self.bound:
                self.clamped = user
        return found

    def _has_form(self, user: Operation) -> bool:
        if not is_named(user, "where.self") or user.args[0] != self.condition:
            return False
        _, chosen, other = user.args
        if chosen == self.bound and other == self.y:
            return True
        values = [v for v in (chosen, other) if not _is_zero(self._graph, v)]
        return len(values) == 1 and self._graph.same_kind(values[0], self.y)

    def rewritten(self, user: Operation, mask: Slot) -> Operation:
        """Return a use of the condition in its vectorised form."""
        _, chosen, other = user.args
        if user is self.clamped:
            clamp = clamp_below if is_named(self.step, *_BELOW) else clamp_above
            return _call(clamp, [self.y, self.bound], user, user.outputs, self._graph)
        # Selects, not products: what is left out may be infinite.
        if _is_zero(self._graph, chosen):
            function, args = aten.hardtanh_backward.default, [other, mask, -1.0, 1.0]
        else:
            function, args = aten.threshold_backward.default, [chosen, mask, 0.0]
        return _call(function, args, user, user.outputs, self._graph)


def vectorised_selects(block: Block, held: Iterable[Slot], new_slot: Callable[[], Slot]) -> Block:
    """Return the block with clamps and masks of floats for selects by a comparison.

    ``where(y <= b, b, y)`` becomes a clamp, and in its gradients, ``where(y <= b, 0, g)`` and
    ``where(y <= b, g, 0)``, the condition becomes a float tensor. Bit for bit the same, infinite
    and undefined numbers included, but for the sign of zeros.

    Args:
        block: operations.
        held: arguments and constants.
        new_slot: gives numbers to new tensors.

    """
    graph = Graph(block, held)
    selects: Dict[Slot, _Select] = {}
    for step in block.operations:
        if not isinstance(step, Operation) or not _compares(graph, step):
            continue
        select = _Select(graph, step)
        if select.forms():
            selects[select.condition] = select
    steps: List[Step] = []
    masks: Dict[Slot, Slot] = {}
    clamps: Set[Slot] = set()

    def mask_of(select: _Select, user: Operation) -> Slot:
        condition = select.condition
        if condition not in masks:
            y = select.y
            # y <= b where max(y, b) <= b: one tensor less to keep for the backward pass.
            if is_named(select.step, "le.Tensor", "ge.Tensor") and condition in clamps:
                y = select.clamped.outputs  # type: ignore[union-attr]
            mask = masks[condition] = new_slot()
            graph.traced[mask] = graph.traced[select.y]
            compare = _COMPARISONS[f"{select.step.name}.Tensor"]
            steps.append(_call(compare, [y, select.bound], user, mask, graph))
        return masks[condition]

    for step in block.operations:
        if isinstance(step, Operation) and _condition(step) in selects:
            assert isinstance(step.outputs, Slot)
            select = selects[step.outputs]
            if not _from_result(select):
                mask_of(select, step)
            continue
        select = selects.get(step.args[0]) if is_named(step, "where.self") else None  # type: ignore
        if select is None or not isinstance(step, Operation):
            steps.append(step)
        elif step is select.clamped:
            steps.append(select.rewritten(step, step.outputs))
            clamps.add(select.condition)
        else:
            steps.append(select.rewritten(step, mask_of(select, step)))
    return Block(steps, list(block.results))


def _condition(step: Operation) -> Optional[Slot]:
    return step.outputs if isinstance(step.outputs, Slot) else None


def _from_result(select: _Select) -> bool:
    return select.clamped is not None and is_named(select.step, "le.Tensor", "ge.Tensor")


def _compares(graph: Graph, step: Operation) -> bool:
    if not is_named(step, *_BELOW, *_ABOVE):
        return False
    y, bound = step.args[:2]
    if not (graph.is_float(y) and graph.is_float(bound)) or step.kwargs:
        return False
    made, known, few = (graph.traced[slot] for slot in (step.outputs, y, bound))
    slots = [step.outputs, y, bound]
    for user in graph.read_by(step.outputs):
        if isinstance(user, Operation):
            slots += [slot for slot in user.args[1:] if isinstance(slot, Slot)]
            slots.append(user.outputs)
    return (
        made.shape == known.shape
        and few.dtype == known.dtype
        and _count(known.shape) >= max(_FEW, 2 * _count(few.shape))
        and not any(isinstance(slot, Slot) and graph.is_written(slot) for slot in slots)
        and not graph.is_returned(step.outputs)
    )


def _is_zero(graph: Graph, slot: Any) -> bool:
    """Tell whether a tensor is the number 0, made by the program."""
    step = graph.made_by(slot)
    return (
        is_named(step, "scalar_tensor.default")
        and step.args[0] == 0  # type: ignore[union-attr]
        and not graph.is_written(slot)
    )


def _count(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
