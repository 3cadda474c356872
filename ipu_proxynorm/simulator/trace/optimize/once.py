"""Parts a program into what depends on the parameters alone, and the rest."""

from __future__ import annotations

from typing import Iterable, List, Set, Tuple

from ..tape import Block, Operation, Slot, Step, makes, uses
from .graph import Graph, is_pure


def parted(block: Block, parameters: Iterable[Slot], held: Iterable[Slot]) -> Tuple[Block, Block]:
    """Return a block to run once for each weight update, and one for each micro-batch.

    The first computes what depends on ``parameters`` alone, such as the moments of Proxy Norm's
    proxies; its results are read by the second. Bit for bit the same.

    Args:
        block: operations.
        parameters: what stays the same between weight updates; constants among them.
        held: all arguments and constants.

    """
    graph = Graph(block, held)
    known: Set[Slot] = {slot for slot in parameters if not graph.is_written(slot)}
    first: List[Step] = []
    rest: List[Step] = []
    for step in block.operations:
        if isinstance(step, Operation) and _stays(step, known, graph):
            first.append(step)
            known.update(makes(step))
        else:
            rest.append(step)
    needed = {slot for step in rest for slot in uses(step)}
    made = [slot for step in first for slot in makes(step)]
    return Block(first, [slot for slot in made if slot in needed]), Block(rest, block.results)


def _stays(step: Operation, known: Set[Slot], graph: Graph) -> bool:
    outputs = makes(step)
    return (
        is_pure(step)
        and uses(step) <= known
        and not any(graph.is_written(slot) or graph.is_returned(slot) for slot in outputs)
    )
