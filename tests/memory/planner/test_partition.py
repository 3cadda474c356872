"""The solver against literals, and against all cuts tried one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipu_proxynorm.memory.planner.partition import PlannedStage, emptiest, partition
from ipu_proxynorm.memory.planner.stages import Placement, Segment, StageTable, inputs_kept

AMOUNT = st.integers(0, 20)
SEGMENT = st.builds(
    Segment,
    name=st.just("layer"),
    forward_cycles=st.integers(1, 20),
    backward_cycles=AMOUNT,
    entering_cycles=st.integers(0, 3),
    resident_bytes=AMOUNT,
    state_bytes=AMOUNT,
    saved_bytes=AMOUNT,
    live_bytes=AMOUNT,
    temporary_bytes=AMOUNT,
    entering_bytes=AMOUNT,
)
PLACEMENT = st.sampled_from(
    [Placement("on-chip", 1.0), Placement("streaming", 0.0, 1.0), Placement("sharded", 0.25)]
)


def live_bytes(run):
    """The most that lives: while a segment runs, what those before it saved waits."""
    return max(
        sum(s.saved_bytes for s in run[:position]) + segment.live_bytes
        for position, segment in enumerate(run)
    )


def stage_bytes(segments, first, last, to_end, placement, cuts=()):
    """Bytes of one stage, summed as the documentation says, without tables."""
    run = segments[first:last]
    ends = [first, *cuts, last]
    depth = 2 * to_end + 1
    return (
        sum(s.resident_bytes + placement.share_on_chip * s.state_bytes for s in run)
        + placement.buffer_share * max(s.state_bytes for s in run)
        + max(s.temporary_bytes for s in run)
        + max(live_bytes(segments[a:b]) for a, b in zip(ends, ends[1:]))
        + (depth - 1) * segments[first].entering_bytes
        + depth * sum(segments[c].entering_bytes for c in cuts)
    )


def stage_cycles(segments, first, last, recomputed):
    """Forward pass, again if recomputed, backward pass, and what crosses the boundary."""
    run = segments[first:last]
    forward = sum(s.forward_cycles for s in run)
    backward = sum(s.backward_cycles for s in run)
    return run[0].entering_cycles + (1 + recomputed) * forward + backward


def every_cut(count, stages):
    for inner in itertools.combinations(range(1, count), stages - 1):
        yield (0, *inner, count)


def least_bytes(segments, first, last, to_end, placement):
    """The least bytes of a stage over all choices of up to two checkpoints; and the choice."""
    return min(
        (stage_bytes(segments, first, last, to_end, placement, cuts), len(cuts), cuts)
        for n in (0, 1, 2)
        for cuts in itertools.combinations(range(first + 1, last), n)
    )


def brute_force(segments, stages, placement):
    """(cycles of the busiest stage, least bytes of the fullest) of every cut.

    The last stage of a pipeline has no checkpoints, or those that need least memory and the time of
    computing again what is before them.
    """
    found = []
    for ends in every_cut(len(segments), stages):
        *pairs, (first, count) = zip(ends, ends[1:])
        others = [least_bytes(segments, a, b, stages - 1 - n, placement)[0]
                  for n, (a, b) in enumerate(pairs)]  # fmt: skip
        busy = [stage_cycles(segments, a, b, recomputed=True) for a, b in pairs]
        own = stage_cycles(segments, first, count, recomputed=False)
        size = stage_bytes(segments, first, count, 0, placement)
        found.append((max([*busy, own]), max([*others, size])))
        size, _, cuts = least_bytes(segments, first, count, 0, placement)
        if stages > 1 and cuts:
            again = sum(s.forward_cycles for s in segments[first : cuts[-1]])
            found.append((max([*busy, own + again]), max([*others, size])))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(SEGMENT, min_size=1, max_size=7), st.integers(1, 4), PLACEMENT, st.integers(5, 150))
def test_the_busiest_stage_is_the_least_busy_of_all_that_fit(segments, stages, placement, capacity):
    found = partition(StageTable(segments), stages, capacity, placement, slack=0)
    fitting = [c for c, size in brute_force(segments, stages, placement) if size <= capacity]
    if not fitting:
        assert found is None
        return
    assert found.cycles == min(fitting)
    assert found.bytes <= capacity
    last = 0
    for number, stage in enumerate(found.stages):
        assert stage.first == last < stage.last
        last = stage.last
        to_end = stages - 1 - number
        args = (segments, stage.first, stage.last, to_end, placement, stage.checkpoints)
        assert stage.bytes == pytest.approx(stage_bytes(*args))
    assert last == len(segments)


@settings(max_examples=40, deadline=None)
@given(st.lists(SEGMENT, min_size=1, max_size=7), st.integers(1, 4), PLACEMENT)
def test_the_emptiest_is_the_emptiest_of_all(segments, stages, placement):
    found = emptiest(StageTable(segments), stages, placement)
    everything = brute_force(segments, stages, placement)
    if not everything:
        assert found is None
        return
    assert found.bytes == pytest.approx(min(size for _, size in everything))


def test_equal_layers_are_cut_into_equal_stages():
    table = StageTable([Segment(str(n), backward_cycles=10, forward_cycles=0) for n in range(8)])
    assert partition(table, 4, 1).starts == (2, 4, 6)


def test_memory_moves_a_cut_away_from_balance():
    segments = [
        Segment(str(n), backward_cycles=10, forward_cycles=0, resident_bytes=b)
        for n, b in enumerate([5, 1, 1, 1])
    ]
    assert partition(StageTable(segments), 2, 6).starts == (2,)
    assert partition(StageTable(segments), 2, 5).starts == (1,)
    assert partition(StageTable(segments), 2, 4) is None


def test_the_first_stage_stashes_for_all_behind_it():
    assert [inputs_kept(to_end) for to_end in range(4)] == [1, 3, 5, 7]
    segments = [Segment(str(n), forward_cycles=1, entering_bytes=10) for n in range(4)]
    assert [s.bytes for s in partition(StageTable(segments), 4, 100).stages] == [60, 40, 20, 0]


def test_a_checkpoint_is_set_where_the_stage_does_not_fit_without():
    segments = [
        Segment("a", forward_cycles=1, saved_bytes=50, live_bytes=50),
        Segment("b", forward_cycles=1, saved_bytes=50, live_bytes=50, entering_bytes=2),
        Segment("c", forward_cycles=4, saved_bytes=1, live_bytes=1),
    ]
    roomy, tight = (partition(StageTable(segments), 2, capacity) for capacity in (100, 60))
    assert [s.checkpoints for s in roomy.stages] == [(), ()]
    assert [(s.bytes, s.checkpoints) for s in tight.stages] == [(56, (1,)), (1, ())]


def test_the_last_stage_computes_again_what_is_before_its_checkpoint():
    segments = [
        Segment("a", forward_cycles=9, saved_bytes=1, live_bytes=1),
        Segment("b", forward_cycles=3, saved_bytes=50, live_bytes=50),
        Segment("c", forward_cycles=4, saved_bytes=50, live_bytes=50, entering_bytes=2),
    ]
    roomy, tight = (partition(StageTable(segments), 2, capacity) for capacity in (100, 60))
    assert [s.checkpoints for s in roomy.stages] == [(), ()]
    assert (roomy.starts, tight.starts) == ((1,), (1,))
    assert tight.stages[1] == PlannedStage(1, 3, cycles=3 + 4 + 3, bytes=52, checkpoints=(2,))
    assert partition(StageTable(segments), 1, 60) is None  # one IPU has no such default


@settings(max_examples=40, deadline=None)
@given(st.lists(SEGMENT, min_size=1, max_size=7))
def test_checkpoints_of_one_ipu_are_spread_as_well_as_any(segments):
    table, count = StageTable(segments), len(segments)
    size, cuts = table.spread(0, count)

    def needed(cuts):
        ends = [0, *cuts, count]
        spans = max(live_bytes(segments[a:b]) for a, b in zip(ends, ends[1:]))
        return spans + sum(segments[c].entering_bytes for c in cuts)

    every = [c for n in range(count) for c in itertools.combinations(range(1, count), n)]
    assert size == pytest.approx(needed(cuts)) == min(map(needed, every))


def test_equal_operators_of_a_stage_share_their_code():
    segments = [Segment(str(n), forward_cycles=1) for n in range(4)]
    table = StageTable(segments, code_bytes=np.full((4, 5), 30.0))
    assert [s.bytes for s in partition(table, 2, 100).stages] == [30, 30]


def test_state_in_streaming_memory_leaves_room():
    segments = [
        Segment("a", forward_cycles=1, state_bytes=80),
        Segment("b", forward_cycles=1, state_bytes=80),
    ]
    assert partition(StageTable(segments), 1, 100) is None
    assert partition(StageTable(segments), 1, 100, Placement("streaming", 0.0, 1.0)).bytes == 80


def test_more_stages_than_segments_is_no_cut():
    assert partition(StageTable([Segment("a", forward_cycles=1)]), 2, 100) is None


def test_memory_is_preferred_within_the_slack():
    def table(*rows):
        return StageTable([Segment("", 0, cycles, resident_bytes=size) for cycles, size in rows])

    assert partition(table((100, 9), (1, 9), (100, 1)), 2, 100, slack=0.02).bytes == 10
    assert partition(table((100, 9), (1, 9), (102, 1)), 2, 100, slack=0).starts == (2,)
    assert partition(table((100, 9), (1, 9), (102, 1)), 2, 100, slack=0.02).starts == (1,)


def test_only_allowed_runs_become_stages():
    table = StageTable([Segment(str(n), 0, 10) for n in range(4)])
    allowed = np.ones((4, 5), dtype=bool)
    allowed[0, 2] = False
    assert partition(table, 2, 1, slack=0, allowed=allowed).cycles == 30
    assert partition(table, 2, 1, allowed=np.zeros((4, 5), dtype=bool)) is None
