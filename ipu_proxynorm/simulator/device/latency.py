"""Times of the transfers of a host call, as PopTorch's performance counters give them."""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

Counters = Dict[str, List[List[float]]]


class Transfer(NamedTuple):
    """When a micro-batch's inputs and outputs moved, in seconds of a clock without origin."""

    input: float
    input_complete: float
    output: float
    output_complete: float
    returned: bool  # the outputs went to the host


def counters(transfers: Sequence[Transfer], inputs: int, outputs: int) -> Counters:
    """Return, for each event, a list for each tensor of one time for each micro-batch moved.

    Args:
        transfers: the transfers of the micro-batches, in the order of the batch.
        inputs: number of inputs.
        outputs: number of outputs.

    """
    returned = [transfer for transfer in transfers if transfer.returned]
    return {
        event: [[getattr(transfer, event) for transfer in moved] for _ in range(count)] or [[]]
        for event, moved, count in (
            ("input", transfers, inputs),
            ("input_complete", transfers, inputs),
            ("output", returned, outputs),
            ("output_complete", returned, outputs),
        )
    }


def latency(
    values: Counters,
    start: str,
    first: Callable[[Sequence[float]], float],
    end: str,
    last: Callable[[Sequence[float]], float],
) -> Tuple[float, float, float]:
    """Return minimum, maximum and mean time from one event to another, in seconds.

    Args:
        values: the counters.
        start: the first event, of whose times over all tensors ``first`` is taken.
        first: ``min`` or ``max``.
        end: the second event, likewise with ``last``.
        last: ``min`` or ``max``.

    """
    starts = [first(times) for times in zip(*values[start])]
    ends = [last(times) for times in zip(*values[end])]
    if not ends:
        return (0.0, 0.0, 0.0)
    # Several inputs may belong to one output, as with gradient accumulation.
    group = len(starts) // len(ends)
    begun = [min(starts[i * group : (i + 1) * group]) for i in range(len(ends))]
    durations = [done - began for began, done in zip(begun, ends)]
    return (min(durations), max(durations), sum(durations) / len(durations))
