"""Memory of each IPU over the steps of one weight update, as the pipeline fills and drains."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence, Tuple

from ipu_proxynorm.memory.budget import keeping, stash_depth
from ipu_proxynorm.memory.liveness import Moment, stage_moments
from ipu_proxynorm.memory.predict import Prediction

#: Points kept of one pass, so that a picture stays small.
_POINTS = 60


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One IPU's memory: ``bytes[n]`` from ``times[n]`` (steps of the pipeline) on."""

    ipu: int
    times: Tuple[float, ...]
    bytes: Tuple[float, ...]


def steps_of(stages: int, micro_batches: int, schedule: str = "pipelined") -> int:
    """Return the steps of a weight update; one after the other, each micro-batch has its own."""
    there_and_back = 2 * (stages - 1)
    if schedule == "sequential":
        return micro_batches * (there_and_back + 1)
    return micro_batches + there_and_back


def passes_of(
    step: int, stage: int, stages: int, micro_batches: int, schedule: str = "pipelined"
) -> Tuple[bool, bool, int]:
    """Return whether a stage runs forward and backward at a step, and its micro-batches in flight.

    Stage s sees micro-batch m at step m + s, and again for its gradients at step
    m + 2(S - 1) - s; in a sequential schedule at s and 2(S - 1) - s of the micro-batch's own steps.
    """
    if schedule == "sequential":
        step, micro_batches = step % steps_of(stages, 1), 1
    forward, backward = step - stage, step - (2 * (stages - 1) - stage)
    begun = min(max(forward + 1, 0), micro_batches)
    ended = min(max(backward, 0), micro_batches)
    return 0 <= forward < micro_batches, 0 <= backward < micro_batches, begun - ended


def thinned(moments: Sequence[Moment]) -> List[float]:
    """Return the bytes of moments, of many neighbouring ones the largest."""
    size = max(1, -(-len(moments) // _POINTS))
    parts = (moments[start : start + size] for start in range(0, len(moments), size))
    return [float(max(moment.bytes for moment in part)) for part in parts]


def timelines(prediction: Prediction, most_micro_batches: int = 12) -> List[Timeline]:
    """Return the memory of every IPU over one weight update.

    What is always there stays level, the stash grows with the micro-batches in flight, activations
    (with temporaries, in proportion to the peak that the budget has) rise and fall in each pass. In
    a step the forward pass takes one third of the time and the backward pass, with recomputation,
    the rest; stages of equal length.

    Args:
        prediction: the prediction of a program with one stage to an IPU.
        most_micro_batches: shown, three of a sequential schedule; the steady state of more repeats
            itself.
    """
    capture, layout = prediction.capture, prediction.layout
    stages = capture.stages
    most = max(most_micro_batches, 2 * stages) if layout.schedule != "sequential" else 3
    micro_batches = max(1, min(layout.gradient_accumulation, most))
    steps = steps_of(stages, micro_batches, layout.schedule)
    found = []
    for budget in prediction.ipus:
        (stage, *_) = budget.stages
        terms = budget.terms
        working = terms["activations"] + terms["temporaries"]
        how = keeping(capture, layout, stage)
        moments = stage_moments(capture, stage, how, layout.checkpoints)
        passes: Dict[bool, List[float]] = {
            forward: thinned([m for m in moments if (m.pass_ == "forward") == forward])
            for forward in (True, False)
        }
        scale = working / max(1.0, *passes[True], *passes[False])
        # What one IPU keeps of its forward pass while the others work is no stash.
        waiting = scale * passes[True][-1] if how == "live" else 0.0
        level = budget.used - working - terms["stash"]
        depth = max(1, stash_depth(layout.schedule, stage, stages))
        times, sizes = [], []
        for step in range(steps):
            forward, backward, flying = passes_of(
                step, stage, stages, micro_batches, layout.schedule
            )
            base = level + terms["stash"] * min(1.0, flying / depth)
            for runs, kind, begin, length in (
                (forward, True, 0, 1 / 3),
                (backward, False, 1 / 3, 2 / 3),
            ):
                values = passes[kind] if runs else []
                times += [step + begin + length * n / len(values) for n in range(len(values))]
                sizes += [base + scale * value for value in values]
                if not values:
                    times.append(step + begin)
                    sizes.append(base + (waiting if flying else 0.0))
        times.append(float(steps))
        sizes.append(float(level))
        found.append(Timeline(budget.ipu, tuple(map(float, times)), tuple(sizes)))
    return found
