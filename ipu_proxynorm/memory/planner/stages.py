"""What a run of layers costs as one pipeline stage, in plain numbers of its segments."""

from __future__ import annotations

import dataclasses
from typing import Dict, Optional, Sequence, Tuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Segment:
    """The layers between two neighbouring split points, for one micro-batch of one replica.

    Bytes that add up over a stage, and bytes of which a stage holds the largest only.
    """

    name: str  # the layer at which the segment begins; a stage that begins here is split there
    forward_cycles: float
    backward_cycles: float = 0
    entering_cycles: float = 0  # of a stage that begins here: what crosses, there and back
    resident_bytes: float = 0  # weights and gradient accumulators
    gradient_bytes: float = 0  # summed over the replicas once an update
    state_bytes: float = 0  # optimiser state, wherever it is placed
    saved_bytes: float = 0  # activations that wait for its backward pass
    live_bytes: float = 0  # most that lives while it runs by itself, its saved ones among them
    temporary_bytes: float = 0  # of its largest operator
    entering_bytes: float = 0  # activations that cross the boundary at its beginning


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the optimiser state is: the share of it on chip, and the cycles of an update for it."""

    name: str
    share_on_chip: float
    buffer_share: float = 0  # of the largest segment's state, held on chip while it is updated
    cycles_per_byte: float = 0  # of moving the state to and fro, once an update


ON_CHIP = Placement("on-chip", 1.0)


def inputs_kept(to_end: int) -> int:
    """Return the micro-batches whose inputs a stage keeps, ``to_end`` stages before the last.

    PopART's ``2 (S - 1 - s) + 1``; the last stage keeps those of the micro-batch at hand only.
    """
    return 2 * to_end + 1


def runs(count: int) -> np.ndarray:
    """Return which (first, last) are runs of at least one segment: ``(count, count + 1)``."""
    return np.arange(count + 1)[None, :] > np.arange(count)[:, None]


class StageTable:
    """Costs of every run of segments ``first .. last - 1`` as a stage; see :class:`Segment`.

    Stages before the last keep their inputs and recompute the rest, which is PopTorch's default in
    a pipeline; the last keeps everything, for the one micro-batch at hand, but for what is before
    its last checkpoint, if it has any.

    Args:
        segments: in the order of execution.
        fixed_bytes: the bytes that are taken of every IPU, whatever its stage.
        code_bytes: of every run, ``(count, count + 1)``; equal operators of a stage share code.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        fixed_bytes: float = 0,
        code_bytes: Optional[np.ndarray] = None,
    ) -> None:
        self.segments = list(segments)
        self.fixed_bytes = fixed_bytes
        self.count = len(self.segments)
        self.forward = self._sums("forward_cycles")
        entering = np.array([float(segment.entering_cycles) for segment in self.segments])
        self.both = self.forward + self._sums("backward_cycles") + entering[:, None]
        self.gradients = self._sums("gradient_bytes")
        self.resident = self._sums("resident_bytes")
        if code_bytes is not None:
            self.resident = self.resident + code_bytes
        self.state = self._sums("state_bytes")
        self.live = self._live()
        # By two checkpoints, the first before the second.
        self._between = np.where(runs(self.count), self.live, np.inf)
        self._largest_live = self._largest("live_bytes")
        self.temporary = self._largest("temporary_bytes")
        self.largest_state = self._largest("state_bytes")
        self._checkpointed: Dict[Tuple[int, int, int], Tuple[float, Tuple[int, ...]]] = {}
        self.entering = np.array([float(segment.entering_bytes) for segment in self.segments])

    def _sums(self, name: str) -> np.ndarray:
        """Return sums over [first, last): an array ``(count, count + 1)``."""
        totals = np.concatenate(
            [[0.0], np.cumsum([float(getattr(s, name)) for s in self.segments])]
        )
        return np.maximum(totals[None, :] - totals[:-1, None], 0)

    def _largest(self, name: str) -> np.ndarray:
        """Return maxima over [first, last): an array ``(count, count + 1)``."""
        table = np.zeros((self.count, self.count + 1))
        for first in range(self.count):
            values = [getattr(segment, name) for segment in self.segments[first:]]
            table[first, first + 1 :] = np.maximum.accumulate(values)
        return table

    def _live(self) -> np.ndarray:
        """Return most bytes of activations alive at once over [first, last).

        While a segment's gradients are computed, what the segments before it saved still waits.
        """
        table = np.zeros((self.count, self.count + 1))
        for first in range(self.count):
            waiting = most = 0.0
            for last, segment in enumerate(self.segments[first:], start=first + 1):
                most = max(most, waiting + segment.live_bytes)
                waiting += segment.saved_bytes
                table[first, last] = most
        return table

    def cycles(self, to_end: int) -> np.ndarray:
        """Return cycles for one micro-batch: ``(count, count + 1)``."""
        return self.both + self.forward if to_end else self.both

    def least_cycles(self, stages: int) -> float:
        """Return cycles below which no busiest of ``stages`` stages can be.

        All stages together do all the passes, and all but the last the forward pass again.
        """
        largest = max(segment.forward_cycles + segment.backward_cycles for segment in self.segments)
        forward = sum(segment.forward_cycles for segment in self.segments)
        whole = forward + sum(segment.backward_cycles for segment in self.segments)
        again = (whole + forward) / (stages + 1) if stages > 1 else 0.0
        return max(largest, whole / stages, again)

    def base_bytes(self, to_end: int, placement: Placement = ON_CHIP) -> np.ndarray:
        """Return bytes without live activations, by run: ``(count, count + 1)``."""
        copies = inputs_kept(to_end) - 1  # one of them is among the live activations
        return (
            self.fixed_bytes
            + self.resident
            + placement.share_on_chip * self.state
            + placement.buffer_share * self.largest_state
            + self.temporary
            + copies * self.entering[:, None]
        )

    def least_live(self) -> np.ndarray:
        """Return bytes below which two checkpoints bring no run's live activations.

        No part of a run lives on less than its largest segment, and three parts together live on
        no less than the whole.
        """
        return np.maximum(self.live / 3, self._largest_live)

    def checkpointed(self, first: int, last: int, to_end: int) -> Tuple[float, Tuple[int, ...]]:
        """Return the least bytes of activations of one stage, and the checkpoints that need them.

        At most two checkpoints: each costs one tensor for every micro-batch in flight. One at
        segment ``c`` keeps what enters ``c`` for every micro-batch in flight, and
        only the longest span between checkpoints is rebuilt at once.
        """
        key = (first, last, to_end)
        if key not in self._checkpointed:
            self._checkpointed[key] = self._least_live(first, last, to_end)
        return self._checkpointed[key]

    def spread(self, first: int, last: int) -> Tuple[float, Tuple[int, ...]]:
        """Return the least bytes of activations of one micro-batch over any number of checkpoints.

        Each keeps what enters its segment, once; only the longest span between two is rebuilt.
        The cheapest checkpoints for a bound on the spans are a shortest path; every bound is tried.
        """
        best: Tuple[float, Tuple[int, ...]] = (float(self.live[first, last]), ())
        for bound in sorted({float(v) for v in self.live[first:last, first : last + 1].ravel()}):
            if bound >= best[0]:
                break
            kept = np.full(self.count + 1, np.inf)  # bytes of checkpoints up to this one
            before = np.zeros(self.count + 1, dtype=int)
            kept[first] = 0.0
            for end in range(first + 1, last + 1):
                cost = np.where(self.live[first:end, end] <= bound, kept[first:end], np.inf)
                at = int(cost.argmin())
                own = self.entering[end] if end < last else 0.0
                kept[end], before[end] = cost[at] + own, first + at
            if bound + kept[last] < best[0]:
                cuts, at = [], int(before[last])
                while at != first:
                    cuts.append(at)
                    at = int(before[at])
                best = float(bound + kept[last]), tuple(reversed(cuts))
        return best

    def _least_live(self, first: int, last: int, to_end: int) -> Tuple[float, Tuple[int, ...]]:
        best: Tuple[float, Tuple[int, ...]] = (float(self.live[first, last]), ())
        if last - first < 2:
            return best
        inner = slice(first + 1, last)
        stash = inputs_kept(to_end) * self.entering[inner]
        before, after = self.live[first, inner], self.live[inner, last]
        one = np.maximum(before, after) + stash
        # Of two checkpoints, one along each axis: the first before the second.
        two = np.maximum(np.maximum.outer(before, after), self._between[inner, inner])
        two += np.add.outer(stash, stash)
        for sizes in (one, two):
            at = np.unravel_index(int(sizes.argmin()), sizes.shape)
            if sizes[at] < best[0]:
                best = float(sizes[at]), tuple(first + 1 + int(index) for index in at)
        return best
