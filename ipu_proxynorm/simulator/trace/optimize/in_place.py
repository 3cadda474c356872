"""Lets elementwise operators write over an argument that nothing else reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from ..tape import Block, Operation, Slot, Step, slots_in, uses
from . import selects
from .graph import Graph

aten = torch.ops.aten


def _inplace(name: str, overload: str) -> Callable:
    return getattr(getattr(aten, name + "_"), overload)


# By operator: its form in place, and the positions of the arguments that it may write over.
_FORMS: Dict[Any, Tuple[Callable, Tuple[int, ...]]] = {}
for _name, _overload, _positions in (
    ("abs", "default", (0,)),
    ("add", "Scalar", (0,)),
    ("add", "Tensor", (0,)),
    ("clamp_max", "default", (0,)),
    ("clamp_min", "default", (0,)),
    ("div", "Scalar", (0,)),
    ("div", "Tensor", (0,)),
    ("exp", "default", (0,)),
    ("hardsigmoid", "default", (0,)),
    ("hardswish", "default", (0,)),
    ("hardtanh", "default", (0,)),
    ("leaky_relu", "default", (0,)),
    ("mul", "Scalar", (0,)),
    ("mul", "Tensor", (0, 1)),
    ("neg", "default", (0,)),
    ("relu", "default", (0,)),
    ("sigmoid", "default", (0,)),
    ("silu", "default", (0,)),
    ("sub", "Scalar", (0,)),
    ("sub", "Tensor", (0,)),
    ("tanh", "default", (0,)),
):
    _FORMS[getattr(getattr(aten, _name), _overload)] = (_inplace(_name, _overload), _positions)
_FORMS[selects.clamp_below] = (selects.clamp_below_, (0,))
_FORMS[selects.clamp_above] = (selects.clamp_above_, (0,))

# Gradients, whose forms with ``grad_input`` may write over the gradient that comes in.
_GRADIENTS = {
    getattr(aten, name).default: getattr(aten, name).grad_input
    for name in (
        "gelu_backward",
        "hardtanh_backward",
        "leaky_relu_backward",
        "sigmoid_backward",
        "silu_backward",
        "tanh_backward",
        "threshold_backward",
    )
}


def in_place(block: Block, held: Iterable[Slot]) -> Block:
    """Return the block with elementwise operators in place where they may be; bit for bit the same.

    An operator may write over an argument of its result's shape and type that an operation before
    it has made, of which there is no view, and that no later step reads.
    """
    graph = Graph(block, held)
    steps: List[Step] = []
    for position, step in enumerate(block.operations):
        steps.append(step)
        if not isinstance(step, Operation) or not isinstance(step.outputs, Slot) or step.keeps:
            continue
        target = _target(graph, step, position)
        if target is None:
            continue
        if step.function in _GRADIENTS:
            kwargs = {**step.kwargs, "grad_input": step.args[target]}
            steps[-1] = replace(step, function=_GRADIENTS[step.function], kwargs=kwargs)
        else:
            args = [step.args[target], *(a for at, a in enumerate(step.args) if at != target)]
            steps[-1] = replace(step, function=_FORMS[step.function][0], args=args)
    return Block(steps, list(block.results))


def _target(graph: Graph, step: Operation, position: int) -> Optional[int]:
    """Return the position of the argument that an operator may write over."""
    if step.function in _GRADIENTS:
        positions: Tuple[int, ...] = (0,)
    elif step.function in _FORMS:
        positions = _FORMS[step.function][1]
    else:
        return None
    for at in positions:
        slot = step.args[at] if at < len(step.args) else None
        if isinstance(slot, Slot) and _may_be_written(graph, slot, step, position, at):
            return at
    return None


def _may_be_written(graph: Graph, slot: Slot, step: Operation, position: int, at: int) -> bool:
    others = [argument for i, argument in enumerate(step.args) if i != at]
    return (
        graph.owns_memory(slot)
        and graph.sharing(slot) == {slot}
        and graph.same_kind(slot, step.outputs)
        and graph.is_float(slot)
        and graph.readers[slot][-1] == position
        and slot not in set(slots_in(others))
        and not graph.is_held(slot)
        and not graph.is_returned(slot)
        and not graph.is_written(slot)
        and len(uses(step)) == len({*slots_in(others), slot})
    )
