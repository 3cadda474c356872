"""The search against all layouts, placements and cuts tried one by one."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipu_proxynorm.memory.planner.layouts import BatchLayout, batch_layouts
from ipu_proxynorm.memory.planner.partition import Partition, PlannedStage
from ipu_proxynorm.memory.planner.search import Machine, search, throughput
from ipu_proxynorm.memory.planner.stages import Placement, Segment, StageTable

PLACEMENTS = [Placement("on-chip", 1.0), Placement("off-chip", 0.0, cycles_per_byte=3.0)]


def tables_of(layers):
    """Segments at a micro-batch: a fixed part, and one that grows with it."""

    def tables(micro_batch):
        return StageTable(
            [
                Segment(
                    str(number),
                    forward_cycles=2 + forward * micro_batch,
                    backward_cycles=3 + 2 * forward * micro_batch,
                    resident_bytes=weights,
                    gradient_bytes=weights,
                    state_bytes=weights,
                    saved_bytes=saved * micro_batch,
                    live_bytes=saved * micro_batch,
                    entering_bytes=entering * micro_batch,
                )
                for number, (forward, weights, saved, entering) in enumerate(layers)
            ]
        )

    return tables


def brute_force(layers, global_batch, ipus, machine):
    """The highest throughput of all that fit, without checkpoints."""
    best = 0.0
    for layout in batch_layouts(global_batch, ipus, len(layers)):
        table = tables_of(layers)(layout.micro_batch)
        for inner in itertools.combinations(range(1, len(layers)), layout.stages - 1):
            ends = (0, *inner, len(layers))
            for placement in PLACEMENTS:
                stages = []
                for number, (first, last) in enumerate(zip(ends, ends[1:])):
                    to_end = layout.stages - 1 - number
                    size = table.base_bytes(to_end, placement) + table.live
                    cycles = table.cycles(to_end)[first, last]
                    stages.append(PlannedStage(first, last, cycles, size[first, last]))
                cut = Partition(tuple(stages))
                if cut.bytes <= machine.capacity_bytes:
                    best = max(best, throughput(layout, placement, table, cut, machine))
    return best


LAYER = st.tuples(st.integers(1, 9), st.integers(0, 9), st.just(0), st.integers(0, 5))


@settings(max_examples=30, deadline=None)
@given(st.lists(LAYER, min_size=2, max_size=5), st.sampled_from([6, 8, 12]), st.integers(5, 80))
# Off chip, the state leaves room for a better balanced cut, which more than pays for its travels.
@example([(1, 0, 0, 0), (1, 4, 0, 0), (2, 6, 0, 0), (1, 0, 0, 0), (8, 3, 0, 0)], 6, 18)
def test_nothing_faster_fits(layers, global_batch, capacity):
    machine = Machine(capacity, clock_hertz=1.0, link_bytes_per_cycle=1.0)
    layouts = batch_layouts(global_batch, 4, len(layers))
    found = search(layouts, lambda batch: PLACEMENTS, tables_of(layers), machine)
    best = brute_force(layers, global_batch, 4, machine)
    if best == 0:
        assert not found.fitting
        assert found.nearest.partition.bytes > capacity
    else:
        # Cuts within 1 % of the fastest are chosen among by memory; updates closer than 0.2 % are
        # not told apart.
        assert found.fitting[0].images_per_second == pytest.approx(best, rel=0.0121)


def test_throughput_counts_bubble_ring_and_state():
    layers = [(1, 4, 0, 0), (1, 4, 0, 0)]
    table = tables_of(layers)(2)
    cut = Partition((PlannedStage(0, 1, 13, 0), PlannedStage(1, 2, 11, 0)))
    layout = BatchLayout(stages=2, replicas=2, micro_batch=2, gradient_accumulation=3)
    machine = Machine(100, clock_hertz=1000.0, link_bytes_per_cycle=2.0)
    cycles = (3 + 1) * 13 + 2 * (1 / 2) * 4 / 2.0 + 3.0 * 4
    speed = throughput(layout, PLACEMENTS[1], table, cut, machine)
    assert speed == pytest.approx(12 * 1000 / cycles)


def test_the_predictor_has_the_last_word():
    layers = [(1, 0, 10, 1)] * 4
    machine = Machine(100, clock_hertz=1.0, link_bytes_per_cycle=1.0)
    layouts = batch_layouts(8, 1, 4)
    free = search(layouts, lambda batch: PLACEMENTS[:1], tables_of(layers), machine)
    assert free.fitting[0].layout.micro_batch == 2  # 4 layers x 10 x 2
    # What the sums take for 80 is said to be more than there is, unless the micro-batch is 1.
    doubled = search(
        layouts, lambda batch: PLACEMENTS[:1], tables_of(layers), machine,
        check=lambda c: 2 * c.partition.bytes / 100,
    )  # fmt: skip
    assert doubled.fitting[0].layout.micro_batch == 1
    assert doubled.fitting[0].utilisation == pytest.approx(2 * 40 / 100)


def test_a_pipeline_is_cut_again_where_the_predictor_finds_it_over():
    layers = [(1, 1, 0, 0), (1, 1, 0, 0), (1, 1, 0, 0), (3, 9, 0, 0)]
    machine = Machine(100, clock_hertz=1.0, link_bytes_per_cycle=1.0)
    layouts = [BatchLayout(2, 1, 1, 8)]
    asked = []

    def check(candidate):
        asked.append(candidate.partition.starts)
        return 0.5 if len(asked) > 1 else 8.0

    assert not search(
        layouts, lambda batch: PLACEMENTS[:1], tables_of(layers), machine, lambda c: 1.5
    ).fitting
    found = search(
        layouts, lambda batch: PLACEMENTS[:1], tables_of([(1, 9, 0, 0)] * 4), machine, check
    )
    assert asked[0] == (2,)
    assert not found.fitting or found.fitting[0].utilisation == 0.5


def test_a_busier_stage_is_taken_for_a_shorter_update():
    table = StageTable(
        [
            Segment("a", forward_cycles=0, backward_cycles=11),
            Segment("b", forward_cycles=0, backward_cycles=4, gradient_bytes=50),
            Segment("c", forward_cycles=0, backward_cycles=10, gradient_bytes=50),
        ]
    )
    machine = Machine(100, clock_hertz=1.0, link_bytes_per_cycle=1.0)
    layout = BatchLayout(stages=2, replicas=2, micro_batch=1, gradient_accumulation=3)
    found = search([layout], lambda batch: PLACEMENTS[:1], lambda micro_batch: table, machine)
    # 4 x 15 + 50 cycles, not 4 x 14 + 100.
    assert found.fitting[0].partition.starts == (2,)
    assert found.fitting[0].images_per_second == pytest.approx(6 / 110)
