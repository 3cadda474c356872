from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.memory.cycles import speeds
from ipu_proxynorm.memory.planner import BatchLayout, Planner
from ipu_proxynorm.memory.throughput import stage_times, throughput, update_cycles


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(64) for _ in range(4)))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


SGD = memory.optimizer_memory("sgd")
LAYOUT = memory.Layout(optimizer=SGD, replicas=2, gradient_accumulation=8)


@pytest.fixture(scope="module")
def whole():
    return memory.capture(Net(), [torch.empty(8, 3, 32, 32)], training=True, precision="16.16")


def test_an_update_takes_its_micro_batches_and_the_weight_update(whole):
    found = throughput(whole, LAYOUT)
    (time,) = found.stages
    update = update_cycles(whole, LAYOUT, speeds()[0])
    cycles = 8 * time.cycles + update
    assert found.images_per_second == pytest.approx(8 * 8 * 2 * 1.33e9 / cycles)
    assert found.update_cycles == update > 0
    assert found.low < found.images_per_second < found.high
    assert found.waiting == 0


def test_a_pipeline_waits_while_it_fills_and_recomputes_all_stages_but_the_last(whole):
    cut = whole.with_splits(["blocks.2"])
    found = throughput(cut, LAYOUT)
    assert found.waiting == pytest.approx(1 / 9)
    first, last = found.stages
    assert first.recomputed > 0
    assert last.recomputed == 0
    assert last.transfers > 0
    alone = stage_times(cut, dataclasses.replace(LAYOUT, recomputation="none"), speeds()[0])
    assert first.cycles == pytest.approx(alone[0].cycles + first.recomputed)
    busiest = max(first.cycles, last.cycles)
    cycles = 9 * busiest + found.update_cycles
    assert found.images_per_second == pytest.approx(128 * 1.33e9 / cycles)


def test_the_planner_has_the_same_time(whole):
    planner = Planner(whole, ["blocks.1", "blocks.2", "blocks.3"], LAYOUT)
    for splits in ([], ["blocks.2"], ["blocks.1", "blocks.3"]):
        plan = planner.evaluate(BatchLayout(len(splits) + 1, 2, 8, 8), splits)
        direct = throughput(whole.with_splits(splits) if splits else whole, LAYOUT)
        assert plan.images_per_second == pytest.approx(direct.images_per_second, rel=0.02)


def test_a_stable_norm_reads_its_input_twice(whole):
    plain, stable = (
        throughput(whole, dataclasses.replace(LAYOUT, stable_norm=on)).stages[0].kinds
        for on in (False, True)
    )
    assert stable["norm"] > plain["norm"] > 0
    assert {k: v for k, v in stable.items() if k != "norm"} == {
        k: v for k, v in plain.items() if k != "norm"
    }


def test_a_chip_of_higher_clock_is_faster_and_float32_slower(whole):
    mk2 = throughput(whole, LAYOUT).images_per_second
    bow = throughput(whole, dataclasses.replace(LAYOUT, chip="bow")).images_per_second
    assert 1.2 < bow / mk2 < 1.85 / 1.33 + 1e-6  # links and host have no higher clock
    c600 = throughput(whole, dataclasses.replace(LAYOUT, chip="c600")).images_per_second
    assert 1.05 < c600 / mk2 < 1.12 + 1e-6
    single = throughput(whole, dataclasses.replace(LAYOUT, precision="32.32"))
    assert single.images_per_second < 0.8 * mk2
    half = throughput(whole, dataclasses.replace(LAYOUT, half_partials=True))
    assert half.images_per_second > mk2


def test_stages_in_sequence_take_the_sum(whole):
    cut = whole.with_splits(["blocks.2"])
    layout = dataclasses.replace(LAYOUT, schedule="sequential", recomputation="none")
    found = throughput(cut, layout)
    total = 8 * sum(time.cycles for time in found.stages) + found.update_cycles
    assert found.images_per_second == pytest.approx(128 * 1.33e9 / total)


def test_inference_needs_no_update_and_is_faster(whole):
    inference = memory.capture(
        Net(), [torch.empty(8, 3, 32, 32)], training=False, precision="16.16"
    )
    found = throughput(inference, dataclasses.replace(LAYOUT, optimizer=None))
    assert found.update_cycles == 0
    assert found.images_per_second > 2 * throughput(whole, LAYOUT).images_per_second
    assert "of its time" in found.limit
