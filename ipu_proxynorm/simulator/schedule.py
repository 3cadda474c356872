"""Where every operator runs, and which micro-batch is on which IPU when: as data, text and SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, List, NamedTuple, Sequence, Tuple

if TYPE_CHECKING:
    from ._poplar_executor import PoplarExecutor


class PlacedOperator(NamedTuple):
    """An operator of the program.

    ``ipus`` are the IPUs of the machine that run it, one for each replica in order; ``line`` is
    ``file:line`` of the call in the user's program.
    """

    name: str
    stage: int
    ipus: Tuple[int, ...]
    backward: bool
    line: str


class Work(NamedTuple):
    """What an IPU does at one step: one pipeline stage's pass over one micro-batch."""

    stage: int
    micro_batch: int
    backward: bool

    def __str__(self) -> str:
        return f"{'b' if self.backward else 'f'}{self.micro_batch}"


class AtOnce(NamedTuple):
    """How many micro-batches the simulator computes at once.

    ``micro_batches`` is 1 where it computes one after the other, for the ``reason``; which of the
    two, and how many, decides in which order sums are rounded. Schedules do not depend on it.
    """

    micro_batches: int
    reason: str

    def __str__(self) -> str:
        if self.micro_batches > 1:
            return f"{self.micro_batches} micro-batches are computed together"
        return f"micro-batches are computed one after the other: {self.reason}"


@dataclass(frozen=True)
class Schedule:
    """The steps of one weight update, or of one inference call, on the IPUs of one replica.

    Attributes:
        steps: for each step, for each IPU, what it does, forward passes first.
        ramp_up: steps before every IPU has all its work, a backward pass too in training.
        ramp_down: steps after the last at which every IPU has all its work.

    """

    steps: List[Dict[int, List[Work]]]
    ramp_up: int
    ramp_down: int

    @property
    def ipus(self) -> List[int]:
        """The IPUs, in order."""
        return sorted({ipu for step in self.steps for ipu in step})

    @property
    def bubble_fraction(self) -> float:
        """The share of passes that do not happen because an IPU waits for others."""
        busiest = max(len(work) for step in self.steps for work in step.values())
        done = sum(len(work) for step in self.steps for work in step.values())
        return 1.0 - done / (busiest * len(self.steps) * len(self.ipus))

    def phase_of(self, step: int) -> str:
        """Return "ramp-up", "steady" or "ramp-down"."""
        if step < self.ramp_up:
            return "ramp-up"
        return "ramp-down" if step >= len(self.steps) - self.ramp_down else "steady"

    def as_text(self) -> str:
        """Return a table: a row for each IPU, a column for each step."""
        rows = [["step", *map(str, range(len(self.steps)))]]
        for ipu in self.ipus:
            cells = (" ".join(map(str, step.get(ipu, []))) or "." for step in self.steps)
            rows.append([f"IPU {ipu}", *cells])
        rows.append(["", *({"ramp-up": "up", "ramp-down": "down"}.get(self.phase_of(step), "")
                           for step in range(len(self.steps)))])  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, f"bubble: {self.bubble_fraction:.1%}"])

    def as_svg(self, cell: int = 34) -> str:
        """Return a picture: forward passes blue, backward passes orange, micro-batches numbered.

        Args:
            cell: width and height of a step, in pixels; at least 20 keeps the numbers apart.

        """
        left, top = 60, 24
        bottom = top + cell * len(self.ipus)
        width, height = max(left + cell * len(self.steps), 420) + 8, bottom + 48
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
            f'<path d="M0 0h{width}v{height}h-{width}z" fill="#ffffff"/>',
            _text(4, 16, "step", "start"),
        ]
        for number, step in enumerate(self.steps):
            x = left + cell * number
            parts.append(_text(x + cell / 2, 16, str(number)))
            for row, ipu in enumerate(self.ipus):
                y = top + cell * row
                work = step.get(ipu, [])
                for position, item in enumerate(work):
                    size = (cell - 2) / len(work)
                    at = x + 1 + position * size
                    parts.append(_box(at, y + 1, size, cell - 2, item.backward))
                    parts.append(_text(at + size / 2, y + cell / 2 + 4, str(item.micro_batch)))
        for row, ipu in enumerate(self.ipus):
            parts.append(_text(4, top + cell * (row + 0.5) + 4, f"IPU {ipu}", "start"))
        for phase in ("ramp-up", "steady", "ramp-down"):
            spans = [n for n in range(len(self.steps)) if self.phase_of(n) == phase]
            if spans:
                x, end = left + cell * spans[0] + 2, left + cell * (spans[-1] + 1) - 2
                parts.append(f'<path d="M{x} {bottom + 4}H{end}" stroke="#555555"/>')
                parts.append(_text((x + end) / 2, bottom + 17, phase))
        y = bottom + 38
        for x, backward, name in ((left, False, "forward"), (left + 80, True, "backward")):
            parts.append(_box(x, y - 10, 12, 12, backward) + _text(x + 16, y, name, "start"))
        note = f"of micro-batch n; bubble {self.bubble_fraction:.1%}"
        return "".join([*parts, _text(left + 164, y, note, "start"), "</svg>"])


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#222222">{text}</text>'


def _box(x: float, y: float, width: float, height: float, backward: bool) -> str:
    colour = "#f5b971" if backward else "#8fb8de"
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}"/>'


def pipelined(stage_ipus: Sequence[int], micro_batches: int, training: bool) -> Schedule:
    """Return the schedule of a pipeline.

    Stage s sees micro-batch m at step m + s, and again for its gradients at step m + 2(S − 1) − s:
    the last stage does both at once, so that training counts 2S − 1 stages.

    Args:
        stage_ipus: the IPU of each stage.
        micro_batches: the gradient accumulation, or the device iterations in inference.
        training: with backward passes.

    """
    last = len(stage_ipus) - 1
    depth = 2 * last if training else last
    steps: List[Dict[int, List[Work]]] = []
    for step in range(micro_batches + depth):
        work: Dict[int, List[Work]] = {}
        for backward in (False, True) if training else (False,):
            for stage, ipu in enumerate(stage_ipus):
                micro_batch = step - (2 * last - stage if backward else stage)
                if 0 <= micro_batch < micro_batches:
                    work.setdefault(ipu, []).append(Work(stage, micro_batch, backward))
        steps.append(work)
    return Schedule(steps, ramp_up=min(depth, micro_batches), ramp_down=min(depth, micro_batches))


def sequential(stage_ipus: Sequence[int], micro_batches: int, training: bool) -> Schedule:
    """Return the schedule of stages that run one after the other on each micro-batch.

    Args:
        stage_ipus: the IPU of each stage.
        micro_batches: the gradient accumulation, or the device iterations in inference.
        training: with backward passes.

    """
    passes = [(stage, False) for stage in range(len(stage_ipus))]
    if training:
        passes += [(stage, True) for stage in reversed(range(len(stage_ipus)))]
    steps = [
        {stage_ipus[stage]: [Work(stage, micro_batch, backward)]}
        for micro_batch in range(micro_batches)
        for stage, backward in passes
    ]
    return Schedule(steps, ramp_up=0, ramp_down=0)


def of(executor: PoplarExecutor) -> Schedule:
    """Return the schedule of a compiled model.

    Raises:
        poptorch.Error: it is not compiled.

    """
    from .machine import pipeline

    program = executor._compiled().program
    options = executor.options
    training = program.trained
    micro_batches = (
        options.Training.gradient_accumulation if training else options.device_iterations
    )
    stage_ipus = program.stage_ipus
    make = pipelined if pipeline.is_pipelined(options) else sequential
    return make(stage_ipus, micro_batches, training)


def operators(executor: PoplarExecutor) -> List[PlacedOperator]:
    """Return every operator of a compiled model with its place, in the order of execution.

    Raises:
        poptorch.Error: it is not compiled.

    """
    from .machine.ipus import ipus_per_replica

    program = executor._compiled().program
    replicas = executor.options.replication_factor
    stride = ipus_per_replica(program.placements)
    return [
        PlacedOperator(
            operation.name,
            operation.origin.stage,
            tuple(replica * stride + operation.origin.ipu for replica in range(replicas)),
            operation.origin.backward,
            f"{operation.origin.file}:{operation.origin.line}" if operation.origin.file else "",
        )
        for operation in program.operations
    ]


def at_once(executor: PoplarExecutor) -> AtOnce:
    """Return how many micro-batches of a compiled model are computed at once, and why not more.

    Raises:
        poptorch.Error: the model is not compiled.

    """
    device = executor._compiled()
    device.plan()
    return AtOnce(device.at_once, device.apart or "")
