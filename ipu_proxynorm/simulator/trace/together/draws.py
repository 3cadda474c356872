"""Random draws, taken out of a program so that each micro-batch's come in its own order.

What draws runs for one micro-batch after the other, on the stream of its replica, before what is
computed together: so every micro-batch gets the numbers that it gets alone.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Set

import torch

from ..consistency import Traced
from ..optimize.graph import Graph, is_named, is_pure
from ..tape import Block, Operation, Slot, Step, makes, uses
from .values import NotTogether, aten

_EMPTY = ("empty_like.default", "new_empty.default", "new_zeros.default", "zeros_like.default")


class Draws(NamedTuple):
    """What draws, and the program without it.

    Attributes:
        block: makes what is drawn, given parameters, buffers and constants.
        rest: the other operations; they read what is drawn.

    """

    block: Block
    rest: List[Step]


def separated(block: Block, given: Iterable[Slot], graph: Graph, new_slot: Any) -> Draws:
    """Part a program into what draws random numbers and the rest.

    Args:
        block: a micro-batch's operations.
        given: tensors that are the same for every micro-batch: parameters, constants.
        graph: the graph of the block.
        new_slot: gives numbers to new tensors.

    Raises:
        NotTogether: what is drawn depends on a micro-batch's values.

    """
    known = {slot for slot in given if not graph.is_written(slot)}
    drawing: List[Step] = []
    drawn: List[Slot] = []
    left_out: Set[Slot] = set()
    rest: List[Step] = []
    for step in block.operations:
        if not isinstance(step, Operation) or not step.random:
            rest.append(step)
        elif is_named(step, "native_dropout.default"):
            rest += _dropout(step, drawing, drawn, graph, new_slot)
        elif step.keeps:
            target = step.args[0]
            _bring(target, graph, known, drawing, left_out)
            if graph.sharing(target) != {target}:
                raise NotTogether(f"{step.name} draws into a part of a tensor")
            for other in uses(step) - {target}:
                _bring(other, graph, known, drawing, set())
            drawing.append(step)
            drawn.append(target)
        else:
            for slot in uses(step):
                _bring(slot, graph, known, drawing, set())
            drawing.append(step)
            drawn += makes(step)
    rest = [
        step for step in rest if not (isinstance(step, Operation) and set(makes(step)) & left_out)
    ]
    return Draws(Block(drawing, drawn), rest)


def _dropout(
    step: Operation, drawing: List[Step], drawn: List[Slot], graph: Graph, new_slot: Any
) -> List[Step]:
    """Draw the factors of a dropout, 0 or 1 / (1 - p), and return the product with them."""
    x, *rest = step.args
    made, mask = step.outputs
    traced: Traced = graph.traced[x]
    ones, factors, own_mask = new_slot(), new_slot(), mask if mask is not None else new_slot()
    origin = step.origin
    kind = {"dtype": traced.dtype}
    drawing.append(Operation(aten.ones.default, [list(traced.shape)], kind, ones, origin))
    drawing.append(
        Operation(step.function, [ones, *rest], {}, (factors, own_mask), origin, random=True)
    )
    drawn += [factors, own_mask]
    graph.traced[factors] = traced
    graph.traced.setdefault(own_mask, Traced(traced.shape, torch.bool))
    makes = {made: graph.traced[made]}
    return [Operation(aten.mul.Tensor, [x, factors], {}, made, origin, makes=makes)]


def _bring(
    slot: Slot, graph: Graph, known: Set[Slot], drawing: List[Step], left_out: Set[Slot]
) -> None:
    """Let what makes a tensor be part of what draws.

    Raises:
        NotTogether: it depends on a micro-batch's values.

    """
    made_already = {s for step in drawing for s in makes(step)}
    if slot in known or slot in made_already:
        return
    step = graph.made_by(slot)
    if step is None or not isinstance(step.outputs, Slot):
        raise NotTogether("random numbers are drawn by values of a micro-batch")
    left_out.add(slot)
    if is_named(step, *_EMPTY) and slot in graph.traced:
        traced = graph.traced[slot]
        function = aten.zeros.default if "zeros" in step.name else aten.empty.memory_format
        kind: Dict[str, Any] = {"dtype": traced.dtype}
        drawing.append(Operation(function, [list(traced.shape)], kind, slot, step.origin))
        return
    if not (is_pure(step) or is_named(step, "empty.memory_format")) or step.random:
        raise NotTogether(f"random numbers are drawn by what {step.name} makes")
    for source in uses(step):
        _bring(source, graph, known, drawing, set())
    drawing.append(step)
