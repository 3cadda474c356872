"""Batches dealt out exactly, in layouts that PopTorch accepts."""

import pytest

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory.planner.layouts import BatchLayout, batch_layouts, system_ipus


def test_every_layout_keeps_the_global_batch_and_fills_its_pipeline():
    layouts = batch_layouts(768, ipus=16, most_stages=20)
    assert {layout.global_batch for layout in layouts} == {768}
    assert max(layout.ipus for layout in layouts) == 16
    for layout in layouts:
        assert layout.stages == 1 or layout.gradient_accumulation >= 2 * layout.stages - 1
    assert BatchLayout(2, 8, 12, 8) in layouts  # as published for EfficientNet-B0
    assert BatchLayout(4, 4, 2, 96) in layouts  # and B5
    assert BatchLayout(4, 4, 48, 4) not in layouts  # 4 micro-batches do not fill 4 stages


def test_all_layouts_of_a_small_case():
    found = {
        (a.stages, a.replicas, a.micro_batch, a.gradient_accumulation)
        for a in batch_layouts(6, ipus=2, most_stages=9)
    }
    one = {(1, 1, 1, 6), (1, 1, 2, 3), (1, 1, 3, 2), (1, 1, 6, 1)}
    assert found == one | {(1, 2, 1, 3), (1, 2, 3, 1)} | {(2, 1, 1, 6), (2, 1, 2, 3)}


def test_replicas_that_do_not_divide_the_batch_are_left_out():
    assert {layout.replicas for layout in batch_layouts(9, ipus=4, most_stages=1)} == {1}


def test_a_pipeline_of_s_stages_takes_s_minus_1_micro_batches_more():
    layout = BatchLayout(stages=4, replicas=1, micro_batch=2, gradient_accumulation=9)
    assert layout.micro_batches == 12
    assert layout.bubble == pytest.approx(3 / 12)


@pytest.mark.parametrize(
    ("batch", "ipus", "words"),
    [(768, 0, "--ipus 0: expected at least 1"), (0, 4, "--global-batch 0: expected at least 1")],
)
def test_nothing_to_deal_is_refused(batch, ipus, words):
    with pytest.raises(UserError, match=words):
        batch_layouts(batch, ipus, most_stages=4)


def test_systems_by_name():
    assert (system_ipus("pod16"), system_ipus("M2000")) == (16, 4)
    with pytest.raises(UserError, match=r"--system 'pod17' is unknown: did you mean .*pod16"):
        system_ipus("pod17")
