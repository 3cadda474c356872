"""Plans a captured program: where stages begin, micro-batch, replicas, accumulation, state."""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable, List, Optional, Sequence, Tuple

from ipu_proxynorm.chip import find_chip
from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.memory import budget, calibration
from ipu_proxynorm.memory.cycles import (
    LINK_BYTES_PER_SECOND,
    STREAMING_BYTES_PER_SECOND,
    speeds,
)
from ipu_proxynorm.memory.graph import Capture
from ipu_proxynorm.memory.layout import Layout
from ipu_proxynorm.memory.planner.alone import OneIpu
from ipu_proxynorm.memory.planner.layouts import BatchLayout, batch_layouts
from ipu_proxynorm.memory.planner.partition import evaluate
from ipu_proxynorm.memory.planner.search import Candidate, Machine, search, throughput
from ipu_proxynorm.memory.planner.segments import SegmentedCapture
from ipu_proxynorm.memory.planner.stages import Placement
from ipu_proxynorm.memory.predict import SAFE, Prediction, predict_capture
from ipu_proxynorm.placement import OFF_CHIP, ON_CHIP, SHARDED

#: IPUs that PopTorch gives to one process at most.
MOST_IPUS = 64
#: Memory proportions that a pipeline is tried with where it does not fit with the one given, the
#: last also the lowest of one IPU. Published programs ran with 0.1 to 0.2, and those of them that
#: were measured at about the speed predicted; below 0.1 Poplar's code grows.
PROPORTIONS = (0.3, 0.1)
#: By what factor the model is off between layouts of one network: the median over the 18 pairs of
#: measured programs of one network (``benchmarks/data/ipu_throughput.csv``).
SAME_SPEED = 1.09


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to lay a program out, and what is predicted for it.

    Attributes:
        batch: stages, replicas, micro-batch and gradient accumulation.
        splits: layers at which stages after the first begin.
        checkpoints: layers whose outputs are recomputation checkpoints.
        optimizer_location: ``on-chip``, ``sharded`` or ``off-chip``.
        recomputation: of a `Layout`.
        proportion: memory proportion, lower than the one given; None: that one.
        images_per_second: the speed of all replicas together, by the cycle model.
        stage_cycles: the cycles of each stage, for one micro-batch.
        prediction: memory of each IPU.
    """

    batch: BatchLayout
    splits: Tuple[str, ...]
    checkpoints: Tuple[str, ...]
    optimizer_location: str
    images_per_second: float
    stage_cycles: Tuple[float, ...]
    prediction: Prediction
    recomputation: str = "stage"
    proportion: Optional[float] = None

    @property
    def effort(self) -> int:
        """How much a plan asks for: stages of a pipeline, and checkpoints to be named.

        Of plans that are as fast, by what the model knows, the one that asks for least is chosen.
        What a single key asks for does not count: recomputation by PopART's choice, a memory
        proportion, the place of the optimiser state.
        """
        return 2 * (self.batch.stages.bit_length() - 1) + bool(self.checkpoints)

    @property
    def balance(self) -> float:
        """Mean cycles of the stages over those of the busiest."""
        return sum(self.stage_cycles) / len(self.stage_cycles) / max(self.stage_cycles)


@dataclasses.dataclass(frozen=True)
class Plans:
    """Plans that fit; ``nearest`` to fitting where none does.

    The first is the simplest of those that are as fast as the fastest, by what the model knows; the
    others follow by speed.
    """

    fitting: Tuple[Plan, ...]
    nearest: Optional[Plan]
    considered: int


def simplest_first(plans: Sequence[Plan]) -> Tuple[Plan, ...]:
    """Return plans by speed, but first the one that asks for least of those that are as fast."""
    if not plans:
        return ()
    ordered = sorted(plans, key=lambda plan: -plan.images_per_second)
    least = ordered[0].images_per_second / SAME_SPEED
    close = [plan for plan in ordered if plan.images_per_second >= least]
    chosen = min(close, key=lambda plan: (plan.effort, -plan.images_per_second))
    return (chosen, *(plan for plan in ordered if plan is not chosen))


def placements(batch: BatchLayout, clock: float) -> List[Placement]:
    """Return where the optimiser state may be, the cheapest first.

    Sharded, each replica updates its part and sends the new weights round; off chip, the state
    travels to Streaming Memory and back.
    """
    places = [Placement(ON_CHIP, 1.0)]
    if batch.replicas > 1:
        link = clock / (LINK_BYTES_PER_SECOND * speeds()[0].link_efficiency)
        places.append(Placement(SHARDED, 1 / batch.replicas, cycles_per_byte=link))
    streaming = clock / STREAMING_BYTES_PER_SECOND
    return [*places, Placement(OFF_CHIP, 0.0, cycles_per_byte=2 * streaming)]


class Planner:
    """Plans one program for any number of IPUs.

    Args:
        capture: the capture of the program, forward and backward, in one stage.
        points: layers at which a stage may begin, in order.
        layout: chip, precision, optimiser, proportion ...; what the plan decides is ignored.
    """

    def __init__(self, capture: Capture, points: Sequence[str], layout: Layout) -> None:
        self.capture, self.layout = capture, layout
        self.parameters = calibration.ensemble()[0]
        self.segmented = SegmentedCapture(capture, points, layout, self.parameters)
        self.chip = find_chip(layout.chip)
        self.clock = self.chip.clock_hertz
        # Places of the optimiser state and memory proportions are tried on the same cut.
        self._at = functools.lru_cache(maxsize=8)(capture.with_micro_batch)
        self._cut = functools.lru_cache(maxsize=8)(self._cut_anew)

    def plan(
        self,
        global_batch: int,
        ipus: int,
        least_micro_batch: int = 1,
        most_micro_batch: int = 256,
        keep: int = 4,
        progress: Optional[Callable[[int, int], None]] = None,
    ) -> Plans:
        """Return the fastest plans of exactly ``global_batch`` images an update that fit.

        ``progress`` is called with the layouts looked at and their number.

        Raises:
            UserError: no IPU, more than PopTorch takes, or a batch that cannot be kept.
        """
        if ipus > MOST_IPUS:
            raise UserError(
                f"--ipus {ipus}: PopTorch gives one process {MOST_IPUS} IPUs at most; plan each "
                f"process's share, e.g. --ipus {MOST_IPUS} with the global batch divided likewise"
            )
        most_stages = len(self.segmented.points) + 1
        layouts = [
            batch
            for batch in batch_layouts(global_batch, ipus, most_stages, most_micro_batch)
            if batch.micro_batch >= least_micro_batch
        ]
        if not layouts:
            raise UserError(
                f"--global-batch {global_batch}: no micro-batch from {least_micro_batch} to "
                f"{most_micro_batch} divides it; expected a multiple of {least_micro_batch}"
            )
        lower = [share for share in PROPORTIONS if share < self.layout.proportion(0)]
        single = OneIpu(
            self.capture,
            self.segmented,
            self.layout,
            lambda batch: placements(batch, self.clock),
            self.machine(),
            PROPORTIONS[-1],
            self._share,
        )
        found = search(
            layouts,
            lambda batch: placements(batch, self.clock),
            self.segmented.table,
            self.machine(),
            self._share,
            keep,
            single.fastest,
            [(share, functools.partial(self.segmented.table, proportion=share)) for share in lower],
            progress,
        )
        nearest = found.nearest
        if nearest is not None:
            alone = [batch for batch in layouts if batch.stages == 1]
            alone = [min(alone, key=lambda b: (b.micro_batch, -b.replicas))] if alone else []
            emptiest = [nearest, *map(single.emptiest, alone)]
            nearest = min(emptiest, key=lambda candidate: candidate.utilisation or 0.0)
        return Plans(
            simplest_first([self._plan(candidate) for candidate in found.fitting]),
            None if nearest is None else self._plan(nearest),
            found.tried,
        )

    def evaluate(
        self,
        batch: BatchLayout,
        splits: Sequence[str],
        checkpoints: Sequence[str] = (),
        optimizer_location: str = ON_CHIP,
    ) -> Plan:
        """Return what is predicted for a given layout, whether it fits or not.

        Raises:
            UserError: a split is none of the points.
        """
        for split in splits:
            if split not in self.segmented.points:
                raise unknown_name("split", split, self.segmented.points)
        table = self.segmented.table(batch.micro_batch)
        starts = [self.segmented.points.index(split) + 1 for split in splits]
        places = {place.name: place for place in placements(batch, self.clock)}
        place = places.get(optimizer_location, places[ON_CHIP])
        cut = evaluate(table, (0, *starts, table.count), place)
        speed = throughput(batch, place, table, cut, self.machine())
        kind = self.layout.recomputation
        captured, layout = self._laid_out(batch, splits, checkpoints, place.name, kind)
        prediction = predict_capture(captured, layout)
        cycles = tuple(stage.cycles for stage in cut.stages)
        if batch.stages == 1:
            speed = prediction.throughput.images_per_second
            cycles = tuple(stage.cycles for stage in prediction.throughput.stages)
        return Plan(
            batch,
            tuple(splits),
            tuple(checkpoints),
            place.name,
            speed,
            cycles,
            prediction,
            kind,
        )

    def machine(self) -> Machine:
        """Return what the search has to know of an IPU: its room up to the safe utilisation."""
        room = SAFE * self.chip.sram_bytes / self.segmented.overhead(1)
        link = LINK_BYTES_PER_SECOND * speeds()[0].link_efficiency
        return Machine(room, self.clock, link / self.clock)

    def _laid_out(
        self,
        batch: BatchLayout,
        splits: Sequence[str],
        checkpoints: Sequence[str],
        location: str,
        recomputation: str = "stage",
        proportion: Optional[float] = None,
    ) -> Tuple[Capture, Layout]:
        """Return program and layout as the predictor takes them."""
        layout = dataclasses.replace(
            self.layout,
            replicas=batch.replicas,
            gradient_accumulation=batch.gradient_accumulation,
            optimizer_location=location,
            checkpoints=tuple(checkpoints),
            schedule="pipelined",
            recomputation=recomputation,
            keeps_last_segment=False,
            overlap_io=self.layout.overlap_io and batch.stages == 1,
            available_memory_proportion=self.layout.available_memory_proportion
            if proportion is None
            else (proportion,),
        )
        return self._cut(batch.micro_batch, tuple(splits)), layout

    def _cut_anew(self, micro_batch: int, splits: Tuple[str, ...]) -> Capture:
        return self._at(micro_batch).with_splits(splits)

    def candidate_layout(self, candidate: Candidate) -> Tuple[Capture, Layout]:
        """Return program and layout of a candidate, as the predictor takes them."""
        splits = [self.segmented.points[start - 1] for start in candidate.partition.starts]
        checkpoints = [
            self.segmented.checkpoint_layer(cut)
            for stage in candidate.partition.stages
            for cut in stage.checkpoints
        ]
        return self._laid_out(
            candidate.layout,
            splits,
            checkpoints,
            candidate.placement.name,
            candidate.recomputation,
            candidate.proportion,
        )

    def _share(self, candidate: Candidate) -> float:
        captured, layout = self.candidate_layout(candidate)
        budgets = budget.ipu_budgets(captured, layout, self.parameters)
        return max(b.utilisation for b in budgets) / SAFE

    def _plan(self, candidate: Candidate) -> Plan:
        captured, layout = self.candidate_layout(candidate)
        return Plan(
            batch=candidate.layout,
            splits=captured.stage_names,
            checkpoints=layout.checkpoints,
            optimizer_location=layout.optimizer_location,
            images_per_second=candidate.images_per_second,
            stage_cycles=tuple(stage.cycles for stage in candidate.partition.stages),
            prediction=predict_capture(captured, layout),
            recomputation=candidate.recomputation,
            proportion=candidate.proportion,
        )
