"""Leaves out roundings to float16 that change nothing, and the way back from them.

The device rounds what every operator returns. A CPU computes in float32, between a cast from
float16 and one to it; where an operator chooses among its arguments, or changes their sign, there
is nothing to round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Iterable, List, Optional, Set

import torch

from ..tape import Block, Operation, Slot, Step, makes, slots_in, uses
from .graph import Graph, is_named, is_pure, is_shared, with_arguments

# What returns nothing but numbers of its tensors, their opposites, and 0.
_CHOOSING = (
    "abs.default", "cat.default", "clone.default", "expand.default", "flip.default",
    "index_select.default", "max_pool2d_with_indices.default", "maximum.default",
    "minimum.default", "neg.default", "permute.default", "relu.default", "reshape.default",
    "select.int", "slice.Tensor", "squeeze.default", "squeeze.dim", "squeeze.dims", "t.default",
    "transpose.int", "unsqueeze.default", "view.default", "_unsafe_view.default",
)  # fmt: skip
# What returns its first argument's numbers or 0, by what the others say.
_MASKING = ("hardtanh_backward.default", "threshold_backward.default")
# What returns its first argument's numbers or one that it is given, by position.
_FILLING = {"constant_pad_nd.default": 2, "masked_fill.Scalar": 2}


def without_idle_roundings(block: Block, held: Iterable[Slot]) -> Block:
    """Return the block without roundings of numbers that float16 has; bit for bit the same.

    Args:
        block: operations.
        held: arguments and constants.

    """
    graph = Graph(block, held)
    if not any(known.dtype == torch.float16 for known in graph.traced.values()):
        return block
    halves = _Halves(graph)
    instead: Dict[Slot, Slot] = {}
    steps: List[Step] = []
    for step in block.operations:
        if not isinstance(step, Operation):
            if uses(step) & set(instead):  # its blocks read the tensors by their own names
                return block
            steps.append(step)
            continue
        step = with_arguments(step, instead)
        if is_pure(step) and not is_shared(step, graph):
            same = halves.same_as(step)
            if same is not None:
                instead[step.outputs] = same
                continue
            step = halves.taken(step)
        steps.append(step)
    return Block(steps, list(block.results))


class _Halves:
    """Which float32 tensors hold numbers that float16 has.

    Args:
        graph: of the block.

    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._exact: Set[Slot] = set()
        self._binary: Set[Slot] = set()  # of zeros and ones
        self._before: Dict[Slot, Slot] = {}  # by float16 tensor, what it was cast from, unchanged

    def same_as(self, step: Operation) -> Optional[Slot]:
        """Return the tensor that a cast from float16 gives back, if it does."""
        if self._cast(step) != (torch.float16, torch.float32):
            return None
        before = self._before.get(step.args[0])
        if before is None or not self._graph.same_kind(before, step.outputs):
            return None
        return before if self._graph.owns_memory(before) else None

    def taken(self, step: Operation) -> Operation:
        """Take note of what an operation makes, and return it, or a shorter way."""
        cast = self._cast(step)
        if cast == (torch.float16, torch.float32):
            boolean = self._before.get(step.args[0])
            if boolean is not None and self._is(boolean, torch.bool):
                known = {boolean: self._graph.traced[boolean]}
                step = replace(step, args=[boolean], reads=known)
                self._binary.add(step.outputs)
            self._exact.add(step.outputs)
        elif cast == (torch.bool, torch.float32):
            self._binary.add(step.outputs)
            self._exact.add(step.outputs)
        elif cast == (torch.bool, torch.float16) or (cast and step.args[0] in self._exact):
            self._before[step.outputs] = step.args[0]
        elif cast is None and self._keeps_exact(step):
            made = makes(step)
            self._exact.update(slot for slot in made if self._is(slot, torch.float32))
        return step

    def _is(self, slot: Any, dtype: torch.dtype) -> bool:
        known = self._graph.traced.get(slot) if isinstance(slot, Slot) else None
        return known is not None and known.dtype == dtype

    def _cast(self, step: Operation) -> Any:
        """Return the types from and to which an operation casts, None if it does not."""
        if not is_named(step, "_to_copy.default") or set(step.kwargs) != {"dtype"}:
            return None
        known = self._graph.traced.get(step.args[0])
        return None if known is None else (known.dtype, step.kwargs["dtype"])

    def _keeps_exact(self, step: Operation) -> bool:
        args = step.args
        if is_named(step, "scalar_tensor.default"):
            return _is_half(args[0])
        if is_named(step, *_CHOOSING):
            return self._all_exact(args) and not step.kwargs
        if is_named(step, *_MASKING):
            return args[0] in self._exact
        if is_named(step, *_FILLING):
            name = f"{step.name}.{step.function._schema.overload_name or 'default'}"  # type: ignore
            at = _FILLING[name]
            return args[0] in self._exact and _is_half(args[at] if at < len(args) else 0)
        if is_named(step, "where.self"):
            return self._all_exact(args[1:])
        if is_named(step, "mul.Tensor"):
            return self._all_exact(args) and any(slot in self._binary for slot in args)
        return False

    def _all_exact(self, args: Any) -> bool:
        slots = list(slots_in(list(args)))
        return bool(slots) and all(slot in self._exact for slot in slots)


def _is_half(number: Any) -> bool:
    """Tell whether float16 has a number."""
    if type(number) not in (int, float, bool):
        return False
    single = torch.tensor(float(number), dtype=torch.float64)
    return bool(single == single.half())
