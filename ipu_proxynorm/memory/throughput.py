"""How many images a second a program computes, where the time goes, and what limits it."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Sequence, Tuple

from ipu_proxynorm.chip import Chip, find_chip
from ipu_proxynorm.memory import budget, liveness
from ipu_proxynorm.memory.cycles import (
    LINK_BYTES_PER_SECOND,
    STREAMING_BYTES_PER_SECOND,
    Speeds,
    by_kind,
    speeds,
)
from ipu_proxynorm.memory.graph import Capture
from ipu_proxynorm.memory.layout import Layout
from ipu_proxynorm.memory.recomputing import run_again
from ipu_proxynorm.placement import SHARDED

#: Beside what the ensemble of fits allows: with this factor, up and down, 39 of 40 measured
#: programs lie in their interval (``benchmarks/throughput_accuracy.py``).
MODEL_ERROR = 1.35


@dataclasses.dataclass(frozen=True)
class StageTime:
    """Where the time of one pipeline stage goes, for one micro-batch.

    Attributes:
        stage: its number.
        ipu: within the replica.
        kinds: cycles by kind of operator, each pass counted as often as it runs.
        recomputed: cycles of ``kinds`` that the second forward pass takes.
        transfers: cycles of activations and gradients between IPUs, and of inputs from the host.
    """

    stage: int
    ipu: int
    kinds: Dict[str, float]
    recomputed: float
    transfers: float

    @property
    def cycles(self) -> float:
        """Cycles of all of it."""
        return sum(self.kinds.values()) + self.transfers


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Images per second of all replicas, with an interval.

    Attributes:
        images_per_second: by the central speeds.
        low: the lower end of an interval that holds nine of ten measured programs.
        high: its upper end.
        stages: the time of each stage.
        update_cycles: of a weight update: gradients summed over replicas, optimiser state moved.
        waiting: share of the time in which the busiest IPU waits while the pipeline fills and
            drains.
        limit: what takes most of the busiest IPU's time, in words.
    """

    images_per_second: float
    low: float
    high: float
    stages: Tuple[StageTime, ...]
    update_cycles: float
    waiting: float
    limit: str


def stage_times(capture: Capture, layout: Layout, speed: Speeds) -> List[StageTime]:
    """Return where the time of every stage goes, for one micro-batch of one replica."""
    chip = find_chip(layout.chip)
    return [_stage_time(capture, layout, stage, chip, speed) for stage in range(capture.stages)]


def _stage_time(
    capture: Capture, layout: Layout, stage: int, chip: Chip, speed: Speeds
) -> StageTime:
    # I/O tiles compute nothing.
    chip = dataclasses.replace(chip, tiles=chip.tiles - layout.io_tiles)
    arguments = (chip, speed, layout.precision, layout.half_partials, layout.stable_norm)
    forward = by_kind(capture, capture.forward(stage), *arguments)
    kinds = by_kind(capture, capture.backward(stage), *arguments)
    again = _again(capture, layout, stage, arguments)
    for kind, cycles in forward.items():
        kinds[kind] += cycles + again.get(kind, 0.0)
    ipu = capture.stage_ipus[stage]
    crossed = 0.0
    if stage and capture.stage_ipus[stage - 1] != ipu:
        entering = liveness.stage_tensors(capture, stage, ()).inputs
        made = [i for i in entering if capture.tensors[i].producer >= 0]
        crossed = liveness.bytes_of(capture, made) * (2 if capture.training else 1)
    host = budget.io_bytes(capture, layout, [stage])
    waiting = chip.clock_hertz * host / STREAMING_BYTES_PER_SECOND
    if layout.overlap_io:  # only what takes longer than computing is waited for
        waiting = max(0.0, waiting - sum(kinds.values()))
    return StageTime(
        stage,
        ipu,
        kinds,
        sum(again.values()),
        chip.clock_hertz * crossed / LINK_BYTES_PER_SECOND + waiting,
    )


def _again(
    capture: Capture, layout: Layout, stage: int, arguments: Tuple[Any, ...]
) -> Dict[str, float]:
    """Return the cycles, by kind, of what a stage computes again in the backward pass."""
    if not capture.training:
        return {}
    own = liveness.stage_tensors(capture, stage, layout.checkpoints).checkpoints
    how = budget.keeping(capture, layout, stage)
    return by_kind(capture, run_again(capture, stage, how, own), *arguments)


def update_cycles(capture: Capture, layout: Layout, speed: Speeds) -> float:
    """Return the cycles of a weight update on the IPU that takes longest.

    Gradients go round the replicas (a ring: each IPU sends 2 (R - 1) / R of them), the optimiser
    state to wherever it is and back.
    """
    if not capture.training:
        return 0.0
    chip = find_chip(layout.chip)
    link = chip.clock_hertz / (LINK_BYTES_PER_SECOND * speed.link_efficiency)
    ring = 2 * (layout.replicas - 1) / layout.replicas
    longest = 0.0
    for ipu in set(capture.stage_ipus):
        stages = [stage for stage, on in enumerate(capture.stage_ipus) if on == ipu]
        gradients = sum(t.bytes for stage in stages for t in capture.parameters(stage))
        terms, streamed = budget.weight_terms(capture, layout, stages)
        moved = 2 * streamed["optimizer_state"] * chip.clock_hertz / STREAMING_BYTES_PER_SECOND
        if layout.optimizer_location == SHARDED:
            moved += terms["optimizer_state"] * (layout.replicas - 1) * link / layout.replicas
        longest = max(longest, ring * gradients * link + moved)
    return longest


def _rate(capture: Capture, layout: Layout, speed: Speeds) -> Tuple[float, float, List[StageTime]]:
    """Return images per second, the share of waiting, and the stages' times."""
    times = stage_times(capture, layout, speed)
    by_ipu: Dict[int, float] = {}
    for time in times:
        by_ipu[time.ipu] = by_ipu.get(time.ipu, 0.0) + time.cycles
    together = layout.schedule != "sequential"
    pace = max(by_ipu.values()) if together else sum(by_ipu.values())
    accumulation = layout.gradient_accumulation if capture.training else 1
    filling = len(by_ipu) - 1 if together and capture.training else 0
    total = (accumulation + filling) * pace + update_cycles(capture, layout, speed)
    images = capture.micro_batch * accumulation * layout.replicas
    rate = images * find_chip(layout.chip).clock_hertz / total
    return rate, filling / (accumulation + filling), times


def throughput_by(capture: Capture, layout: Layout, speed: Speeds) -> float:
    """Return the images per second by one set of speeds; see `throughput`."""
    return _rate(capture, layout, speed)[0]


def interval(rates: Sequence[float]) -> Tuple[float, float]:
    """Return the lower and the upper end of an interval, from the rates by an ensemble of speeds.

    From the 10th to the 90th percentile and the central one, the first, further by `MODEL_ERROR`.
    """
    ordered = sorted(rates)
    last = len(ordered) - 1
    low, high = ordered[round(0.1 * last)], ordered[round(0.9 * last)]
    return min(rates[0], low) / MODEL_ERROR, max(rates[0], high) * MODEL_ERROR


def throughput(capture: Capture, layout: Layout) -> Throughput:
    """Return the images per second of a captured program in a layout.

    Pipelined, the busiest IPU sets the pace: an update of A micro-batches over S IPUs takes as long
    as A + S - 1 of its micro-batches, and the weight update. In sequence, a micro-batch takes the
    sum. Inference is taken as a pipeline that stays full. The memory proportion costs no time here.
    """
    low, high = interval([_rate(capture, layout, member)[0] for member in speeds()])
    central = speeds()[0]
    rate, waiting, times = _rate(capture, layout, central)
    update = update_cycles(capture, layout, central)
    return Throughput(rate, low, high, tuple(times), update, waiting, _limit(times, layout, update))


def _limit(times: Sequence[StageTime], layout: Layout, update: float) -> str:
    """Return what takes most of the busiest IPU's time, in words."""
    ipus = sorted({time.ipu for time in times})
    own = {ipu: [time for time in times if time.ipu == ipu] for ipu in ipus}
    busiest = max(ipus, key=lambda ipu: sum(time.cycles for time in own[ipu]))
    parts: Dict[str, float] = {"transfers": sum(time.transfers for time in own[busiest])}
    for time in own[busiest]:
        for kind, cycles in time.kinds.items():
            parts[kind] = parts.get(kind, 0.0) + cycles
    parts["weight update"] = update / max(1, layout.gradient_accumulation)
    name, most = max(parts.items(), key=lambda part: part[1])
    share = most / max(1.0, sum(parts.values()))
    where = f"IPU {busiest}, " if len(ipus) > 1 else ""
    return f"{where}{name}: {share:.0%} of its time"
