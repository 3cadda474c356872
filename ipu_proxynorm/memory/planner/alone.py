"""A program on one IPU: the fastest recomputation, memory proportion and place of the state."""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from ipu_proxynorm.chip import find_chip
from ipu_proxynorm.memory.budget import io_bytes
from ipu_proxynorm.memory.cycles import STREAMING_BYTES_PER_SECOND, by_kind, speeds
from ipu_proxynorm.memory.graph import Capture
from ipu_proxynorm.memory.layout import Layout
from ipu_proxynorm.memory.planner.layouts import BatchLayout
from ipu_proxynorm.memory.planner.partition import Partition, PlannedStage
from ipu_proxynorm.memory.planner.search import Candidate, Machine, throughput
from ipu_proxynorm.memory.planner.segments import SegmentedCapture
from ipu_proxynorm.memory.planner.stages import Placement
from ipu_proxynorm.memory.recomputing import run_again

#: What one IPU may compute again, see `Layout`: nothing, PopART's own choice, all but checkpoints.
KINDS = ("none", "standard", "checkpoints")

Way = Tuple[float, str, Tuple[int, ...]]  # cycles, one of `KINDS`, segments that checkpoints enter


class OneIpu:
    """Finds the fastest candidate of one stage, each judged by the predictor as a whole.

    Args:
        capture: of the program, in one stage.
        segmented: the same in segments, between which checkpoints may be.
        layout: of everything else.
        placements: of the optimiser state, by layout.
        machine: the IPUs.
        lowest: memory proportion that is tried; the one given is the highest.
        check: the share of its room that a candidate takes.
    """

    def __init__(
        self,
        capture: Capture,
        segmented: SegmentedCapture,
        layout: Layout,
        placements: Callable[[BatchLayout], Sequence[Placement]],
        machine: Machine,
        lowest: float,
        check: Callable[[Candidate], float],
    ) -> None:
        self.capture, self.segmented, self.layout = capture, segmented, layout
        self.placements, self.machine, self.check = placements, machine, check
        self.given = layout.proportion(0)
        self.lowest = min(lowest, self.given)
        self._ways: Dict[int, List[Way]] = {}

    def ways(self, micro_batch: int) -> List[Way]:
        """Return what may be computed again at a micro-batch, the fastest way first."""
        if micro_batch not in self._ways:
            table = self.segmented.table(micro_batch)
            count = table.count
            whole, forward = float(table.both[0, count]), float(table.forward[0, count])
            if self.layout.overlap_io:
                host = self._host(micro_batch)
                whole = max(whole - host, host)
            cuts = table.spread(0, count)[1]
            ways: List[Way] = [
                (whole, "none", ()),
                (whole + self._standard(micro_batch), "standard", ()),
            ]
            if cuts:
                ways.append((whole + forward, "checkpoints", cuts))
            self._ways[micro_batch] = sorted(ways)
        return self._ways[micro_batch]

    def _host(self, micro_batch: int) -> float:
        """Return the cycles of a micro-batch's transfers to and from the host."""
        moved = io_bytes(self.capture.with_micro_batch(micro_batch), self.layout, [0])
        return find_chip(self.layout.chip).clock_hertz * moved / STREAMING_BYTES_PER_SECOND

    def _standard(self, micro_batch: int) -> float:
        """Return the cycles of what PopART's Standard computes again."""
        capture = self.capture.with_micro_batch(micro_batch)
        again = run_again(capture, 0, "standard", ())
        given, chip = self.layout, find_chip(self.layout.chip)
        chip = dataclasses.replace(chip, tiles=chip.tiles - given.io_tiles)
        how = (chip, speeds()[0], given.precision, given.half_partials, given.stable_norm)
        return sum(by_kind(capture, again, *how).values())

    def fastest(self, batch: BatchLayout, slowest: float) -> Optional[Candidate]:
        """Return the fastest candidate that fits, if it beats ``slowest`` images/s."""
        table, count = self.segmented.table(batch.micro_batch), self.segmented.cut.stages
        places = self.placements(batch)
        best: Optional[Candidate] = None
        for cycles, kind, cuts in self.ways(batch.micro_batch):
            for place in places:
                cut = Partition((PlannedStage(0, count, cycles, 0.0, cuts),))
                speed = throughput(batch, place, table, cut, self.machine)
                if speed <= slowest:
                    continue
                found = self._fitting(Candidate(batch, place, cut, speed, recomputation=kind))
                if found is not None:
                    best, slowest = found, speed
        return best

    def emptiest(self, batch: BatchLayout) -> Candidate:
        """Return the candidate that takes least, whether it fits or not."""
        table, count = self.segmented.table(batch.micro_batch), self.segmented.cut.stages
        found = []
        for cycles, kind, cuts in self.ways(batch.micro_batch):
            for place in self.placements(batch):
                cut = Partition((PlannedStage(0, count, cycles, 0.0, cuts),))
                speed = throughput(batch, place, table, cut, self.machine)
                candidate = Candidate(
                    batch, place, cut, speed, None, self.lowest, recomputation=kind
                )
                found.append(dataclasses.replace(candidate, utilisation=self.check(candidate)))
        return min(found, key=lambda candidate: candidate.utilisation or 0.0)

    def _fitting(self, candidate: Candidate) -> Optional[Candidate]:
        """Return the candidate with the largest memory proportion, to 0.01, with which it fits."""

        def tried(proportion: Optional[float]) -> Candidate:
            changed = dataclasses.replace(candidate, proportion=proportion)
            return dataclasses.replace(changed, utilisation=self.check(changed))

        def fits(found: Candidate) -> bool:
            return (found.utilisation or 0.0) <= 1

        best = tried(self.lowest)
        if not fits(best):
            return None
        whole = tried(None)
        if fits(whole):
            return whole
        low, high = round(100 * self.lowest), round(100 * self.given)
        while high - low > 1:
            middle = (low + high) // 2
            found = tried(middle / 100)
            if fits(found):
                best, low = found, middle
            else:
                high = middle
        return best
