"""Selects by a comparison, as operators that a CPU has vectorised: clamps and masks of floats.

torch's CPU kernels of ``where``, and of all that reads or makes bools, compute element by element:
a select of half a million numbers takes 1.3 ms, a clamp 0.05 ms.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set

import torch

from ..tape import Block, Operation, Slot, Step
from .graph import Graph, is_named, with_arguments

aten = torch.ops.aten
_BELOW = ("le.Tensor", "lt.Tensor")
_ABOVE = ("ge.Tensor", "gt.Tensor")
_NOT, _CAST = "logical_not.default", "_to_copy.default"
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
            if is_named(user, "where.self") and user.args[1] == self.bound:
                self.clamped = user
            if is_named(user, _NOT):
                found += self._graph.read_by(user.outputs)  # type: ignore[arg-type]
        return found

    def _has_form(self, user: Operation) -> bool:
        if is_named(user, _NOT):
            numbers = self._graph.read_by(user.outputs)
            return not self._is_shared(user.outputs) and all(
                isinstance(number, Operation) and self._is_number(number) for number in numbers
            )
        if self._is_number(user):
            return True
        if not is_named(user, "where.self") or user.args[0] != self.condition:
            return False
        _, chosen, other = user.args
        if chosen == self.bound and other == self.y:
            return True
        values = [v for v in (chosen, other) if not _is_zero(self._graph, v)]
        return len(values) == 1 and self._graph.same_kind(values[0], self.y)

    def _is_number(self, user: Operation) -> bool:
        """Tell whether an operation makes numbers, of y's type, of the condition."""
        graph, number = self._graph, user.outputs
        return (
            is_named(user, _CAST)
            and set(user.kwargs) == {"dtype"}
            and graph.same_kind(number, self.y)
            and not self._is_shared(number)  # one mask stands for all of them
            and all(isinstance(reader, Operation) for reader in graph.read_by(number))
        )

    def _is_shared(self, slot: Slot) -> bool:
        return self._graph.is_written(slot) or self._graph.is_returned(slot)

    def rewritten(self, user: Operation, mask: Slot) -> Operation:
        """Return a use of the condition in its vectorised form."""
        if is_named(user, _CAST):  # of the condition's opposite, which 1 - mask is
            return _call(aten.rsub.Scalar, [mask, 1], user, user.outputs, self._graph)
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

    ``where(y <= b, b, y)`` becomes a clamp. In its gradients, torch's ``where(y <= b, 0, g)`` and
    ``where(y <= b, g, 0)`` and PopART's ``g * (y <= b)`` and ``g * not (y <= b)``, the condition
    becomes a float tensor. Bit for bit the same, infinite and undefined numbers included, but for
    the sign of zeros.

    Args:
        block: operations.
        held: arguments and constants.
        new_slot: gives numbers to new tensors.

    """
    graph = Graph(block, held)
    selects: Dict[Slot, _Select] = {}
    uses_of: Dict[Slot, _Select] = {}  # by what the use returns
    for step in block.operations:
        if isinstance(step, Operation) and _compares(graph, step):
            select = _Select(graph, step)
            users = select.forms()
            if users:
                selects[select.condition] = select
                uses_of.update((user.outputs, select) for user in users)
    return Block(list(_Rewriter(graph, selects, uses_of, new_slot).steps(block)), block.results)


class _Rewriter:
    """Puts the vectorised forms in the places of comparisons and of what uses them.

    Args:
        graph: of the block.
        selects: by condition.
        uses_of: selects by what an operation that uses their condition returns.
        new_slot: gives numbers to new tensors.

    """

    def __init__(
        self,
        graph: Graph,
        selects: Dict[Slot, _Select],
        uses_of: Dict[Slot, _Select],
        new_slot: Callable[[], Slot],
    ) -> None:
        self._graph = graph
        self._selects, self._uses_of = selects, uses_of
        self._new_slot = new_slot
        self._masks: Dict[Slot, Slot] = {}
        self._clamped: Set[Slot] = set()  # conditions whose clamp has been computed
        self._instead: Dict[Slot, Slot] = {}  # masks in the places of conditions as numbers

    def steps(self, block: Block) -> Iterator[Step]:
        """Yield the steps, rewritten."""
        for step in self._steps(block):
            yield with_arguments(step, self._instead) if isinstance(step, Operation) else step

    def _steps(self, block: Block) -> Iterator[Step]:
        for step in block.operations:
            if not isinstance(step, Operation) or not isinstance(step.outputs, Slot):
                yield step
            elif step.outputs in self._selects:
                select = self._selects[step.outputs]
                if not _from_result(select):
                    yield from self._mask_of(select, step)
            elif step.outputs in self._uses_of:
                select = self._uses_of[step.outputs]
                if step is select.clamped:
                    yield select.rewritten(step, step.outputs)
                    self._clamped.add(select.condition)
                elif not is_named(step, _NOT):
                    yield from self._mask_of(select, step)
                    mask = self._masks[select.condition]
                    if is_named(step, _CAST) and step.args[0] == select.condition:
                        self._instead[step.outputs] = mask
                    else:
                        yield select.rewritten(step, mask)
            else:
                yield step

    def _mask_of(self, select: _Select, user: Operation) -> Iterator[Operation]:
        """Yield what computes the mask, unless it has been computed."""
        condition = select.condition
        if condition in self._masks:
            return
        y = select.y
        # y <= b where max(y, b) <= b: one tensor less to keep for the backward pass.
        if _from_result(select) and condition in self._clamped:
            y = select.clamped.outputs  # type: ignore[union-attr]
        mask = self._masks[condition] = self._new_slot()
        self._graph.traced[mask] = self._graph.traced[select.y]
        compare = _COMPARISONS[f"{select.step.name}.Tensor"]
        yield _call(compare, [y, select.bound], user, mask, self._graph)


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
