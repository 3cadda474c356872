"""A captured program in the planner's plain numbers: segments between split points."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ipu_proxynorm.chip import find_chip
from ipu_proxynorm.memory import budget, liveness
from ipu_proxynorm.memory.calibration import Parameters
from ipu_proxynorm.memory.cycles import (
    LINK_BYTES_PER_SECOND,
    STREAMING_BYTES_PER_SECOND,
    by_kind,
    speeds,
)
from ipu_proxynorm.memory.graph import Capture, OperatorRecord
from ipu_proxynorm.memory.layout import Layout
from ipu_proxynorm.memory.planner.stages import Segment, StageTable
from ipu_proxynorm.placement import ON_CHIP


class SegmentedCapture:
    """A program cut at every split point; gives the planner's table at any micro-batch.

    Args:
        capture: the capture of the whole program.
        points: layers at which a stage may begin, in order.
        layout: everything but batch sizes, placement of the optimiser state and checkpoints.
        parameters: the central calibration.
    """

    def __init__(
        self, capture: Capture, points: Sequence[str], layout: Layout, parameters: Parameters
    ) -> None:
        self.cut = capture.with_splits(points)
        self.points = tuple(points)
        # One segment to an IPU and everything kept: each term of its budget is the segment's own.
        self.layout = dataclasses.replace(
            layout,
            optimizer_location=ON_CHIP,
            gradient_accumulation=2,
            replicas=2,
            schedule="sequential",
            recomputation="none",
            checkpoints=(),
        )
        self.parameters = parameters
        self._code = self._code_bytes()
        self._cache: Dict[Tuple[int, Optional[float]], StageTable] = {}

    def table(self, micro_batch: int, proportion: Optional[float] = None) -> StageTable:
        """Return the costs of every run of segments at a micro-batch and a memory proportion."""
        key = (micro_batch, proportion)
        if key not in self._cache:
            self._cache[key] = self._table(*key)
        return self._cache[key]

    def _table(self, micro_batch: int, proportion: Optional[float]) -> StageTable:
        cut = self.cut.with_micro_batch(micro_batch)
        layout = self.layout
        if proportion is not None:
            layout = dataclasses.replace(layout, available_memory_proportion=(proportion,))
        budgets = budget.ipu_budgets(cut, layout, self.parameters)
        kept = [liveness.stage_tensors(cut, number, ()) for number in range(cut.stages)]
        segments = []
        for number, own in enumerate(kept):
            # What the next segment reads too is counted there, as one of its inputs.
            later = set(kept[number + 1].inputs) if number + 1 < cut.stages else set()
            saved = [index for index in own.saved if index not in later]
            segments.append(
                self._segment(
                    cut,
                    number,
                    budgets[number].terms,
                    self.parameters.live * liveness.bytes_of(cut, saved),
                    liveness.bytes_of(cut, own.inputs),
                )
            )
        buffers = max(b.terms["replication_buffers"] + b.terms["io_tiles"] for b in budgets)
        return StageTable(segments, buffers, self._code)

    def _segment(
        self, cut: Capture, number: int, terms: Dict[str, int], saved: float, entering: int
    ) -> Segment:
        chip = find_chip(self.layout.chip)
        # I/O tiles compute nothing.
        computing = dataclasses.replace(chip, tiles=chip.tiles - self.layout.io_tiles)
        given = self.layout
        how = (computing, speeds()[0], given.precision, given.half_partials, given.stable_norm)

        def cycles(operators: Sequence[OperatorRecord]) -> float:
            return sum(by_kind(cut, operators, *how).values())

        link = 2 * entering / LINK_BYTES_PER_SECOND
        host = budget.io_bytes(cut, self.layout, [number]) / STREAMING_BYTES_PER_SECOND

        return Segment(
            name=self.points[number - 1] if number else "",
            forward_cycles=cycles(cut.forward(number)),
            # What comes from the host is part of no second forward pass.
            backward_cycles=cycles(cut.backward(number)) + chip.clock_hertz * host,
            entering_cycles=chip.clock_hertz * link if number else 0.0,
            resident_bytes=terms["weights"] + terms["gradient_accumulators"] + terms["io_buffers"],
            gradient_bytes=sum(tensor.bytes for tensor in cut.parameters(number)),
            state_bytes=terms["optimizer_state"],
            saved_bytes=saved,
            live_bytes=terms["activations"] + terms["temporaries"],
            entering_bytes=entering if number else 0,
        )

    def _code_bytes(self) -> np.ndarray:
        """Return bytes of code of every run: ``(count, count + 1)``."""
        count = self.cut.stages
        by_segment: List[List[OperatorRecord]] = [[] for _ in range(count)]
        chip = find_chip(self.layout.chip)
        weights = budget.operator_weights(self.cut, self.cut.operators, chip)
        for operator in self.cut.operators:
            by_segment[operator.stage].append(operator)
        table = np.zeros((count, count + 1))
        for first in range(count):
            run: List[OperatorRecord] = []
            for last in range(first + 1, count + 1):
                run.extend(by_segment[last - 1])
                table[first, last] = budget.code_bytes(run, weights, self.parameters)
        return table

    def overhead(self, micro_batch: int) -> float:
        """Return the fullest tile's bytes over the mean's, which a budget has as a term."""
        cut = self.cut.with_micro_batch(micro_batch)
        terms = [b.terms for b in budget.ipu_budgets(cut, self.layout, self.parameters)]
        extra = sum(t["tile_imbalance"] for t in terms)
        return 1 + extra / max(1, sum(sum(t.values()) - t["io_tiles"] for t in terms) - extra)

    def checkpoint_layer(self, segment: int) -> str:
        """Return the layer whose output enters a segment."""
        entering = liveness.stage_tensors(self.cut, segment, ()).inputs
        tensors = [self.cut.tensors[index] for index in entering]
        largest = max((t for t in tensors if t.producer >= 0), key=lambda t: t.bytes)
        return largest.layer
