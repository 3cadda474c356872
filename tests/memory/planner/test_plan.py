"""Plans of whole programs: what they cost, and that the predictor stands behind them."""

import dataclasses
import itertools

import pytest
import torch

from ipu_proxynorm.chip import Chip
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import Classification, split_points
from ipu_proxynorm.memory import (
    Layout,
    capture,
    ipu_budgets,
    optimizer_memory,
    predict_capture,
)
from ipu_proxynorm.memory.planner import SAME_SPEED, BatchLayout, Planner
from ipu_proxynorm.memory.planner.plan import simplest_first
from ipu_proxynorm.models import create_model

LAYOUT = Layout(precision="16.16", optimizer=optimizer_memory("sgd"), gradient_accumulation=8)


@pytest.fixture(scope="module")
def program():
    """Operators of a small ResNet, and the layers at which it may be cut."""
    model = create_model("resnetv2_14", norm="gn4")
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    wrapped = Classification(model, (0.5,) * 3, (0.25,) * 3, activations=torch.float16)
    labels = torch.zeros(2, dtype=torch.long)
    points = [f"model.{point}" for point in split_points(model)]
    return capture(wrapped, [images, labels], precision="16.16"), points


def test_plans_fit_keep_the_batch_and_come_fastest_first(program):
    plans = Planner(*program, LAYOUT).plan(64, ipus=4).fitting
    assert plans
    speeds = [plan.images_per_second for plan in plans[1:]]
    assert speeds == sorted(speeds, reverse=True)
    assert plans[0].images_per_second * SAME_SPEED >= max(speeds)
    for plan in plans:
        assert plan.batch.global_batch == 64
        assert plan.prediction.verdict.name == "fits"
        assert len(plan.splits) == plan.batch.stages - 1
        assert 0 < plan.balance <= 1


def test_segments_add_up_to_what_the_predictor_says(program):
    """Of every cut into two: within 5 % of the budget, which the search relies on."""
    captured, points = program
    planner = Planner(captured, points, LAYOUT)
    table = planner.segmented.table(4)
    overhead = planner.segmented.overhead(4)
    for start in range(1, table.count):
        cut = captured.with_micro_batch(4).with_splits([points[start - 1]])
        budgets = ipu_budgets(cut, dataclasses.replace(LAYOUT, replicas=2), planner.parameters)
        for to_end, (first, last) in ((1, (0, start)), (0, (start, table.count))):
            size = overhead * (table.base_bytes(to_end) + table.live)[first, last]
            assert size == pytest.approx(budgets[1 - to_end].used, rel=0.05)


def test_no_other_cut_into_two_is_faster(program):
    captured, points = program
    planner = Planner(captured, points, LAYOUT)
    table = planner.segmented.table(8)
    plans = planner.plan(64, ipus=2, keep=50).fitting
    (plan,) = [p for p in plans if (p.batch.stages, p.batch.micro_batch) == (2, 8)]
    every = [
        max(table.cycles(1)[0, start], table.cycles(0)[start, table.count])
        for start in range(1, table.count)
    ]
    assert max(plan.stage_cycles) <= min(every) * 1.01


def test_a_chip_that_is_too_small_is_said_to_be(program):
    hopeless = Chip("tiny", tiles=64, tile_bytes=1 << 12)
    planner = Planner(*program, dataclasses.replace(LAYOUT, chip=hopeless))
    found = planner.plan(64, ipus=4)
    assert not found.fitting
    assert found.nearest.batch.micro_batch == 1
    utilisation = found.nearest.prediction.verdict.utilisation
    assert utilisation > 1
    # None of the cuts in two or four, with the state anywhere, is emptier.
    captured, points = program
    for starts in itertools.combinations(points, 1):
        layout = dataclasses.replace(LAYOUT, chip=hopeless, optimizer_location="off-chip")
        other = predict_capture(captured.with_micro_batch(1).with_splits(starts), layout)
        assert utilisation <= other.verdict.utilisation * 1.02


def test_a_chip_just_too_small_for_the_whole_takes_a_pipeline(program):
    captured, points = program
    layout = dataclasses.replace(LAYOUT, optimizer_location="off-chip")
    whole = predict_capture(captured.with_micro_batch(1), layout).ipus[0].used
    small = dataclasses.replace(LAYOUT, chip=Chip("small", tiles=64, tile_bytes=whole // 64))
    found = Planner(captured, points, small).plan(64, ipus=4)
    assert found.fitting
    assert {plan.batch.stages for plan in found.fitting} <= {2, 4}


@pytest.fixture(scope="module")
def tight(program):
    """A planner for a chip on which micro-batch 64 does not fit with everything kept."""
    captured, points = program
    least = dataclasses.replace(
        LAYOUT,
        recomputation="none",
        optimizer_location="off-chip",
        available_memory_proportion=(0.12,),
        chip=Chip("tight", tiles=64, tile_bytes=1 << 18),
    )
    for _ in range(5):  # what temporaries may take depends on the chip
        used = predict_capture(captured.with_micro_batch(64), least).ipus[0].used
        chip = Chip("tight", tiles=64, tile_bytes=round(used / 0.9 / 64))
        least = dataclasses.replace(least, chip=chip)
    return Planner(captured, points, dataclasses.replace(LAYOUT, chip=chip))


def test_one_ipu_computes_again_what_it_cannot_keep(tight):
    plans = tight.plan(128, ipus=1, keep=50).fitting
    (plan,) = [plan for plan in plans if plan.batch.micro_batch == 64]
    assert plan.recomputation in ("standard", "checkpoints")
    assert plan.prediction.layout.recomputation == plan.recomputation
    assert plan.prediction.throughput.stages[0].recomputed > 0
    kept = [plan for plan in plans if plan.recomputation == "none"]
    assert all(plan.batch.micro_batch < 64 for plan in kept)


def test_the_speed_of_one_ipu_is_the_predictors(tight):
    for plan in tight.plan(128, ipus=1, keep=50).fitting:
        assert plan.images_per_second == pytest.approx(
            plan.prediction.throughput.images_per_second, rel=0.02
        )


def test_a_simpler_plan_is_chosen_where_it_is_as_fast_by_what_is_known(tight):
    (plan,) = tight.plan(4, ipus=1, least_micro_batch=4).fitting
    pipeline = dataclasses.replace(plan, batch=BatchLayout(2, 1, 1, 4))
    fastest = dataclasses.replace(pipeline, images_per_second=1.05 * plan.images_per_second)
    assert simplest_first([fastest, plan]) == (plan, fastest)
    faster = dataclasses.replace(pipeline, images_per_second=1.2 * plan.images_per_second)
    assert simplest_first([plan, faster]) == (faster, plan)
    assert simplest_first([]) == ()


@pytest.mark.parametrize(
    ("batch", "ipus", "least", "words"),
    [
        (64, 0, 1, "--ipus 0: expected at least 1 IPU"),
        (64, 128, 1, "--ipus 128: PopTorch gives one process 64 IPUs at most"),
        (7, 4, 2, "--global-batch 7: no micro-batch from 2 to 6 divides it"),
    ],
)
def test_what_no_plan_can_keep_is_refused(program, batch, ipus, least, words):
    with pytest.raises(UserError, match=words):
        Planner(*program, LAYOUT).plan(batch, ipus, least, most_micro_batch=6 if least > 1 else 256)
