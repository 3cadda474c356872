"""The layout of highest predicted throughput that fits, over all batch layouts and placements."""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

from ipu_proxynorm.memory.planner.layouts import BatchLayout
from ipu_proxynorm.memory.planner.partition import Partition, emptiest, partition
from ipu_proxynorm.memory.planner.stages import Placement, StageTable

Tables = Callable[[int], StageTable]
"""Costs of every run of segments, by micro-batch."""

Placements = Callable[[BatchLayout], Sequence[Placement]]
"""Where the optimiser state may be, the preferred place first."""

Check = Callable[["Candidate"], float]
"""The share of its IPU that the fullest stage of a candidate takes, as the predictor has it."""

Alone = Callable[[BatchLayout, float], Optional["Candidate"]]
"""The fastest candidate of a layout of one stage that fits and beats so many images/s; or None."""

Lower = Sequence[Tuple[float, Tables]]
"""Lower memory proportions, the largest first, with the costs under each."""

# Cuts are not told apart where their updates take times closer than this.
_CLOSE = 0.002


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the search has to know of the IPUs."""

    capacity_bytes: float  # of one IPU, safety taken off
    clock_hertz: float
    link_bytes_per_cycle: float  # between two IPUs


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout with its cut, and what is predicted for it."""

    layout: BatchLayout
    placement: Placement
    partition: Partition
    images_per_second: float
    utilisation: Optional[float] = None  # of the fullest IPU, by the predictor
    proportion: Optional[float] = None  # of memory for temporaries; None: as given
    recomputation: str = "stage"  # of a `Layout`


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found: the best first; ``nearest`` where nothing fits."""

    fitting: Tuple[Candidate, ...]
    nearest: Optional[Candidate] = None
    tried: int = 0


def throughput(
    layout: BatchLayout, placement: Placement, table: StageTable, cut: Partition, machine: Machine
) -> float:
    """Return images per second of all replicas.

    The busiest stage sets the pace of all; the update takes as long as its slowest stage.
    """
    runs = [(stage.first, stage.last) for stage in cut.stages]
    costs = update_cycles(layout, placement, table, machine)
    cycles = layout.micro_batches * cut.cycles + max(float(costs[run]) for run in runs)
    return layout.global_batch * machine.clock_hertz / cycles


def update_cycles(
    layout: BatchLayout, placement: Placement, table: StageTable, machine: Machine
) -> np.ndarray:
    """Return cycles of a weight update by run of segments: ``(count, count + 1)``.

    Gradients go round the replicas (a ring: each IPU sends 2 (R - 1) / R of them) and the optimiser
    state to wherever it is and back.
    """
    ring = 2 * (layout.replicas - 1) / layout.replicas
    reduced = ring * table.gradients / machine.link_bytes_per_cycle
    return reduced + placement.cycles_per_byte * table.state


def bound(layout: BatchLayout, table: StageTable, machine: Machine) -> float:
    """Return images per second that no cut of the layout can exceed: even stages, free updates."""
    cycles = table.least_cycles(layout.stages)
    return layout.global_batch * machine.clock_hertz / (layout.micro_batches * cycles)


def search(
    layouts: Sequence[BatchLayout],
    placements: Placements,
    tables: Tables,
    machine: Machine,
    check: Optional[Check] = None,
    keep: int = 4,
    alone: Optional[Alone] = None,
    lower: Lower = (),
    progress: Optional[Callable[[int, int], None]] = None,
) -> Found:
    """Return the ``keep`` best layouts that fit, the fastest first.

    A cut is solved for on the segments' sums; ``check`` then predicts it as a whole. What it finds
    over 1 is solved for again with so much less room, twice at most. Layouts whose bound cannot
    reach the best ones are not solved for.

    Args:
        layouts: the layouts of the batch; see :func:`layouts.batch_layouts`.
        placements: the places of the optimiser state, by layout.
        tables: costs by micro-batch.
        machine: the IPUs.
        check: the share of the room that the fullest stage takes; over 1 does not fit. None: the
            segments' sums decide.
        keep: how many to return.
        alone: finds the candidate of a layout of one stage; None: as of more stages.
        lower: tried in turn where a layout does not fit.
        progress: called with the layouts looked at and their number.
    """
    table = functools.lru_cache(maxsize=None)(tables)
    every = [(None, table), *((share, functools.lru_cache(maxsize=None)(t)) for share, t in lower)]

    bounds = [(bound(layout, table(layout.micro_batch), machine), layout) for layout in layouts]
    bounds.sort(key=lambda pair: -pair[0])
    fitting: List[Candidate] = []
    for number, (limit, layout) in enumerate(bounds):
        if progress is not None:
            progress(number, len(bounds))
        if len(fitting) == keep and limit <= fitting[-1].images_per_second:
            break
        slowest = fitting[-1].images_per_second if len(fitting) == keep else 0.0
        candidate: Optional[Candidate] = None
        if layout.stages == 1 and alone is not None:
            candidate = alone(layout, slowest)
        else:
            for share, costs in every:
                costs_here = costs(layout.micro_batch)
                candidate = _fastest(
                    layout, placements(layout), costs_here, machine, check, slowest, share
                )
                if candidate is not None:
                    break
        if candidate is not None:
            fitting = sorted([*fitting, candidate], key=lambda c: -c.images_per_second)[:keep]
    nearest = None if fitting else _nearest(layouts, placements, table, machine, check)
    return Found(tuple(fitting), nearest, len(bounds))


def _fastest(
    layout: BatchLayout,
    placements: Sequence[Placement],
    table: StageTable,
    machine: Machine,
    check: Optional[Check],
    slowest: float,
    proportion: Optional[float] = None,
) -> Optional[Candidate]:
    """Return the layout's fastest candidate that fits; None: there is none faster than that.

    A later placement makes room, and room lets another cut be the faster one: all are tried.
    """
    best: Optional[Candidate] = None
    for placement in placements:
        room = machine.capacity_bytes
        for _ in range(3):
            candidate = _solve(layout, placement, table, machine, room, slowest)
            if candidate is None or candidate.images_per_second <= slowest:
                break
            candidate = dataclasses.replace(candidate, proportion=proportion)
            share = candidate.utilisation if check is None else check(candidate)
            assert share is not None
            if share <= 1:
                best = dataclasses.replace(candidate, utilisation=share)
                slowest = best.images_per_second
                break
            room = min(room, candidate.partition.bytes) / max(share, 1.02)
    return best


def _solve(
    layout: BatchLayout,
    placement: Placement,
    table: StageTable,
    machine: Machine,
    capacity_bytes: float,
    slowest: float,
) -> Optional[Candidate]:
    """Return the fastest cut that fits in so much; None: there is none faster than ``slowest``.

    An update takes its micro-batches on the busiest stage, and the weight update of another. So
    the least busy cut is found first, then the least busy of those whose weight update is short
    enough to be faster all the same, until there is none.
    """
    updates = update_cycles(layout, placement, table, machine)
    images = layout.global_batch * machine.clock_hertz
    most = images / slowest if slowest > 0 else np.inf  # cycles to beat
    allowed = updates < most - layout.micro_batches * table.least_cycles(layout.stages)
    longest = None
    while True:
        cut = partition(table, layout.stages, capacity_bytes, placement, 0.0, allowed)
        if cut is None:
            break
        pace = layout.micro_batches * cut.cycles
        update = max(float(updates[stage.first, stage.last]) for stage in cut.stages)
        if pace + update < most:
            most, longest = pace + update, update
        # The next is no less busy.
        allowed = updates < min(update, (1 - _CLOSE) * most - pace)
    if longest is None:
        return None
    cut = partition(table, layout.stages, capacity_bytes, placement, allowed=updates <= longest)
    assert cut is not None
    speed = throughput(layout, placement, table, cut, machine)
    return Candidate(layout, placement, cut, speed, cut.bytes / machine.capacity_bytes)


def _nearest(
    layouts: Sequence[BatchLayout],
    placements: Placements,
    table: Callable[[int], StageTable],
    machine: Machine,
    check: Optional[Check],
) -> Optional[Candidate]:
    """Return the candidate whose fullest IPU is emptiest, at the smallest micro-batch."""
    if not layouts:
        return None
    least = min(layout.micro_batch for layout in layouts)
    best: Optional[Candidate] = None
    seen = set()
    for layout in sorted(layouts, key=lambda item: -item.replicas):
        if layout.micro_batch != least or layout.stages in seen:
            continue
        seen.add(layout.stages)
        costs = table(least)
        for placement in placements(layout):
            cut = emptiest(costs, layout.stages, placement)
            if cut is None:
                continue
            share = cut.bytes / machine.capacity_bytes
            speed = throughput(layout, placement, costs, cut, machine)
            candidate = Candidate(layout, placement, cut, speed, share)
            if check is not None:
                candidate = dataclasses.replace(candidate, utilisation=check(candidate))
            assert candidate.utilisation is not None
            if best is None or candidate.utilisation < (best.utilisation or 0):
                best = candidate
    return best
