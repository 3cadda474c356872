"""Lets operators that write over a tensor of the program's own make a new one instead."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional

from ..effects import without_write
from ..tape import Block, Operation, Slot, Step, makes, uses
from .graph import Graph, substituted, with_arguments, written_by


def functional(block: Block, held: Iterable[Slot], new_slot: Callable[[], Slot]) -> Block:
    """Return the block with as few operators in place as may be; bit for bit the same.

    What is written to must be a whole tensor, of which there is no view, that leaves the program
    under no name. `in_place` undoes this where it pays.

    Args:
        block: operations.
        held: arguments and constants.
        new_slot: gives numbers to new tensors.

    """
    graph = Graph(block, held)
    instead: Dict[Slot, Slot] = {}
    steps: List[Step] = []
    for step in block.operations:
        if not isinstance(step, Operation):
            if uses(step) & set(instead):
                return block
            steps.append(step)
            continue
        function = _without_write(step, graph)
        new_step = with_arguments(step, instead)
        if function is not None:
            target = step.args[0]
            new = new_slot()
            makes = {new: graph.traced[target]}
            args = substituted(list(step.args), instead)
            new_step = Operation(function, args, dict(step.kwargs), new, step.origin, makes=makes)
            instead[target] = new
        steps.append(new_step)
    return Block(steps, list(block.results))


def _without_write(step: Operation, graph: Graph) -> Optional[Any]:
    """Return the operator that makes a new tensor of what a step writes over, if it may."""
    if not step.keeps or step.random or makes(step):
        return None
    target = step.args[0] if step.args else None
    if not isinstance(target, Slot) or written_by(step) != [target]:
        return None
    if graph.sharing(target) != {target} or not graph.owns_memory(target):
        return None
    if graph.is_returned(target) or graph.is_held(target) or target not in graph.traced:
        return None
    if not step.name.endswith("_") or step.name in ("copy_", "zero_", "fill_", "resize_"):
        return None
    return without_write(step.function)
