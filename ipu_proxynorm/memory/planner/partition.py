"""Cuts segments into pipeline stages: the cut that fits, with the quickest busiest stage."""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ipu_proxynorm.memory.planner.stages import ON_CHIP, Placement, StageTable, runs


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """One stage: segments ``first .. last - 1``, what it costs, and its checkpoints."""

    first: int
    last: int
    cycles: float
    bytes: float
    checkpoints: Tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Partition:
    """Stages in order; ``cycles`` of the busiest and ``bytes`` of the fullest."""

    stages: Tuple[PlannedStage, ...]

    @property
    def cycles(self) -> float:
        """Cycles of the busiest stage."""
        return max(stage.cycles for stage in self.stages)

    @property
    def bytes(self) -> float:
        """Bytes of the fullest stage."""
        return max(stage.bytes for stage in self.stages)

    @property
    def starts(self) -> Tuple[int, ...]:
        """Return the first segment of every stage but the first."""
        return tuple(stage.first for stage in self.stages[1:])


def partition(
    table: StageTable,
    stages: int,
    capacity_bytes: float,
    placement: Placement = ON_CHIP,
    slack: float = 0.01,
    allowed: Optional[np.ndarray] = None,
) -> Optional[Partition]:
    """Return the cut into ``stages`` stages that fits and whose busiest stage is least busy.

    Exact, by dynamic programming from the last stage to the first. Of the cuts whose busiest stage
    is within ``slack`` of the least, the one whose fullest stage is emptiest. Checkpoints are set
    only where a stage does not fit without.

    Args:
        table: costs of every run of segments.
        stages: at least one segment each.
        capacity_bytes: the SRAM of one IPU.
        placement: where the optimiser state is.
        slack: share of cycles given up for memory.
        allowed: runs that may be stages, ``(count, count + 1)``; None: all.

    Returns:
        None if no cut fits.
    """
    if not 1 <= stages <= table.count:
        return None
    cycles = [table.cycles(to_end) for to_end in range(stages)]
    if allowed is not None:
        cycles = [np.where(allowed, cost, np.inf) for cost in cycles]
    most = np.inf
    for checkpointed in (False, True):
        # Checkpoints are looked for only where a stage so made could be the less busy one.
        worth = most * (1 + slack) if checkpointed else -np.inf
        sizes, costs, cuts = _sizes(table, cycles, capacity_bytes, placement, worth)
        fits = [size <= capacity_bytes for size in sizes]
        ends = _minimax([np.where(fit, cost, np.inf) for fit, cost in zip(fits, costs)])
        if ends is not None:
            most = _partition(ends, sizes, costs, cuts).cycles
    if ends is None:
        return None
    bound = (1 + slack) * most
    within = [fit & (cost <= bound) for fit, cost in zip(fits, costs)]
    ends = _minimax([np.where(fit, size, np.inf) for fit, size in zip(within, sizes)]) or ends
    return _partition(ends, sizes, costs, cuts)


def emptiest(table: StageTable, stages: int, placement: Placement = ON_CHIP) -> Optional[Partition]:
    """Return the cut whose fullest stage is emptiest, whatever its cycles: what comes nearest."""
    if not 1 <= stages <= table.count:
        return None
    cycles = [table.cycles(to_end) for to_end in range(stages)]
    sizes, costs, cuts = _sizes(table, cycles, None, placement)
    ends = _minimax([np.where(runs(table.count), size, np.inf) for size in sizes])
    return None if ends is None else _partition(ends, sizes, costs, cuts)


def evaluate(table: StageTable, ends: Sequence[int], placement: Placement = ON_CHIP) -> Partition:
    """Return what a given cut costs, without checkpoints; ``ends`` from 0 to the table's count."""
    sizes = [table.base_bytes(to_end, placement) + table.live for to_end in range(len(ends) - 1)]
    costs = [table.cycles(to_end) for to_end in range(len(ends) - 1)]
    return _partition(tuple(ends), sizes, costs, lambda first, last, to_end: ())


Cuts = Callable[[int, int, int], Tuple[int, ...]]


def _sizes(
    table: StageTable,
    cycles: Sequence[np.ndarray],
    capacity_bytes: Optional[float],
    placement: Placement,
    most_cycles: float = np.inf,
) -> Tuple[List[np.ndarray], List[np.ndarray], Cuts]:
    """Return bytes and cycles of every run by its stages to the end, with checkpoints where needed.

    They are needed where a run does not fit without, could fit with them, and by its ``cycles`` is
    no busier than ``most_cycles`` (infinitely busy is no stage); without a capacity, everywhere.
    The last stage of a pipeline computes again what is before its last checkpoint, others all.
    """
    sizes, costs = [], []
    chosen: Dict[Tuple[int, int, int], Tuple[int, ...]] = {}
    possible = runs(table.count)
    for to_end, cost in enumerate(cycles):
        base = np.where(possible, table.base_bytes(to_end, placement), np.inf)
        size = base + table.live
        cost = np.array(cost)
        wanted = possible & np.isfinite(cost) & (cost <= most_cycles) & (len(cycles) > 1)
        if capacity_bytes is not None:
            wanted &= (size > capacity_bytes) & (base + table.least_live() <= capacity_bytes)
        for first, last in zip(*np.nonzero(wanted)):
            kept, cuts = table.checkpointed(int(first), int(last), to_end)
            size[first, last] = base[first, last] + kept
            if to_end == 0 and cuts:
                cost[first, last] += table.forward[first, cuts[-1]]
            chosen[int(first), int(last), to_end] = cuts
        sizes.append(size)
        costs.append(cost)
    return sizes, costs, lambda first, last, to_end: chosen.get((first, last, to_end), ())


def _minimax(costs: List[np.ndarray]) -> Optional[Tuple[int, ...]]:
    """Return ends 0 .. count of the runs whose largest cost is least; None if none is finite.

    Args:
        costs: the cost of every run [first, last), by the number of stages after it.
    """
    count = costs[0].shape[0]
    best = np.append(costs[0][:, count], np.inf)  # by the first segment of the last stage
    choices = []
    for cost in costs[1:]:
        total = np.maximum(np.where(runs(count), cost, np.inf), best[None, :])
        choices.append(total.argmin(axis=1))
        best = np.append(total.min(axis=1), np.inf)
    if not np.isfinite(best[0]):
        return None
    ends = [0]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return (*ends, count)


def _partition(
    ends: Tuple[int, ...], sizes: List[np.ndarray], costs: Sequence[np.ndarray], cuts: Cuts
) -> Partition:
    """Return the cut at ``ends`` with what its stages cost."""
    stages = len(ends) - 1
    return Partition(
        tuple(
            PlannedStage(
                first,
                last,
                float(costs[to_end][first, last]),
                float(sizes[to_end][first, last]),
                cuts(first, last, to_end),
            )
            for to_end, first, last in zip(range(stages - 1, -1, -1), ends, ends[1:])
        )
    )
