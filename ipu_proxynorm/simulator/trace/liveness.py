"""How much memory the tensors of a program take at most while it runs."""

from __future__ import annotations

from typing import Dict, Set

import torch

from .consistency import Traced
from .optimize.graph import Graph
from .tape import Block, Operation, Slot, makes, uses


def bytes_of(traced: Traced) -> int:
    """Return how many bytes a tensor of that shape and type takes."""
    count = torch.empty((), dtype=traced.dtype).element_size()
    for size in traced.shape:
        count *= size
    return count


def most_bytes(block: Block) -> int:
    """Return the most that the tensors which a block makes take at once.

    Each is freed after its last use, views and results that are written over included. What is
    within branches and loops is not counted.
    """
    graph = Graph(block, [])
    last: Dict[Slot, int] = {}
    for position, step in enumerate(block.operations):
        for slot in (*uses(step), *makes(step)):
            last.update(dict.fromkeys(graph.sharing(slot), position))
    kept = {shared for slot in block.results for shared in graph.sharing(slot)}
    ends: Dict[int, Set[Slot]] = {}
    for slot, position in last.items():
        if slot not in kept:
            ends.setdefault(position, set()).add(slot)
    alive: Dict[Slot, int] = {}
    most = 0
    for position, step in enumerate(block.operations):
        if isinstance(step, Operation):
            for slot in makes(step):
                if graph.owns_memory(slot) and slot in graph.traced:
                    alive[slot] = bytes_of(graph.traced[slot])
        most = max(most, sum(alive.values()))
        for slot in ends.get(position, ()):
            alive.pop(slot, None)
    return most
