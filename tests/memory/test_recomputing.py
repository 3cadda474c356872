"""What PopART computes again in the backward pass, and what is alive meanwhile."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.memory import budget, liveness
from ipu_proxynorm.memory.recomputing import (
    intervals,
    kept_by_standard,
    recomputed,
    replayed,
    run_again,
)


@pytest.mark.parametrize(
    ("count", "expected"),
    [  # the examples in PopART's own comment, where its 0.75 leaves the first size as it is
        (1, [(0, 1)]),
        (8, [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]),
    ],
)
def test_intervals_shrink_to_one_operator(count, expected):
    assert intervals(count) == expected


def test_intervals_of_a_network_as_long_as_resnet_50():
    found = intervals(175)
    assert [last - first for first, last in found[:13]] == [*range(12, 0, -1), 1]
    assert (found[0][0], found[-1][1]) == (0, 175)
    assert all(before[1] == after[0] for before, after in zip(found, found[1:]))


class Chain(nn.Module):
    """Layers after one another, each a product and an activation that keeps its input."""

    def __init__(self, depth=12, width=8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = nn.functional.silu(layer(x))
        return x.sum()


@pytest.fixture(scope="module")
def chain():
    return memory.capture(Chain(), [torch.zeros(4, 8)], training=True)


def peak(capture, keeping, layers=()):
    return max(moment.bytes for moment in liveness.stage_moments(capture, 0, keeping, layers))


def layout(kind, **fields):
    return memory.Layout(
        precision="32.32",
        optimizer=memory.optimizer_memory("sgd"),
        recomputation=kind,
        **fields,
    )


def test_nothing_run_again_is_as_everything_kept(chain):
    capture, passes = replayed(chain, 0, [])
    assert [(name, o.index) for name, o in passes] == [
        *(("forward", o.index) for o in chain.forward(0)),
        *(("backward", o.index) for o in chain.backward(0)),
    ]
    assert liveness.sweep(capture, passes) == liveness.stage_moments(chain, 0, "live")


def test_operators_run_again_once_and_in_order_before_the_gradient_that_needs_them(chain):
    _, passes = replayed(chain, 0, chain.forward(0)[:6])
    again = [position for position, (name, _) in enumerate(passes) if name == "recompute"]
    # What is at the end of the chain does not need them: they run late, all together.
    assert again == list(range(again[0], again[-1] + 1))
    assert again[0] > len(chain.forward(0)) + 6
    run = [passes[position][1].index for position in again]
    assert run == sorted(set(run))


def test_what_runs_again_is_a_tensor_of_its_own(chain):
    forward = chain.forward(0)
    capture, passes = replayed(chain, 0, forward[:6])
    made = [i for _, o in passes for i in o.outputs]
    assert len(made) == len(set(made))
    for position, (_, operator) in enumerate(passes):
        earlier = {i for _, o in passes[:position] for i in o.outputs}
        for index in operator.inputs:
            producer = capture.tensors[index].producer
            assert producer < 0 or index in earlier


def test_of_the_segment_behind_the_last_checkpoint_nothing_runs_again(chain):
    keep = ("layers.5",)
    own = liveness.stage_tensors(chain, 0, keep)
    again = recomputed(chain, 0, "before", own.checkpoints)
    layers = {o.layer for o in again}
    assert "layers.4" in layers
    assert not layers & {"layers.5", "layers.6", "layers.11"}
    assert peak(chain, "before", keep) < peak(chain, "live")
    assert recomputed(chain, 0, "before", ()) == []


def test_standard_keeps_the_smallest_live_set_of_each_interval(chain):
    forward = chain.forward(0)
    kept = kept_by_standard(chain, forward)
    assert kept_by_standard(chain, []) == set()
    for first, last in intervals(len(forward)):
        assert any(o.index in kept for o in forward[first:last])
    again = recomputed(chain, 0, "standard", ())
    assert 0 < len(again) < len(forward)
    assert max(o.index for o in again) < len(forward) / 2 + 2  # behind the intervals all is kept
    assert peak(chain, "standard") <= peak(chain, "live")


def test_norms_alone_run_again():
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
    model = nn.Sequential(block, nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
    capture = memory.capture(model, [torch.zeros(2, 3, 16, 16)], training=True)
    again = recomputed(capture, 0, "norms", ())
    assert [o.name for o in again] == ["native_group_norm"] * 2
    assert run_again(capture, 0, "norms", ()) == again[::-1]
    # SiLU keeps its input, which is the norm's output: 2 of 2 KiB x 8 channels x 2 images.
    one = 2 * 8 * 16 * 16 * 4
    assert peak(capture, "live") - peak(capture, "norms") >= one
    # ReLU keeps its output: in place, that is the norm's no longer.
    model = nn.Sequential(*block[:2], nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3))
    capture = memory.capture(model, [torch.zeros(2, 3, 16, 16)], training=True)
    assert recomputed(capture, 0, "norms", ()) == []
    assert peak(capture, "live") == peak(capture, "norms")
    # Its statistics are needed all the same, so that a norm runs again wherever it may.
    model = nn.Sequential(*block[:2], nn.ReLU(), nn.Conv2d(8, 8, 3))
    capture = memory.capture(model, [torch.zeros(2, 3, 16, 16)], training=True)
    assert len(run_again(capture, 0, "norms", ())) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (layout("standard"), "standard"),
        (layout("norms"), "norms"),
        (layout("checkpoints"), "recompute"),
        (layout("checkpoints", keeps_last_segment=True), "before"),
        (layout("stage"), "live"),
        (layout("none"), "live"),
    ],
)
def test_how_one_ipu_keeps(chain, given, expected):
    assert budget.keeping(chain, given, 0) == expected


def test_the_last_stage_of_a_pipeline_runs_again_what_is_before_its_last_checkpoint(chain):
    cut = chain.with_splits(["layers.6"])
    assert budget.keeping(cut, layout("stage"), 1) == "live"
    assert budget.keeping(cut, layout("stage", checkpoints=("layers.8",)), 1) == "before"
    assert budget.keeping(cut, layout("standard"), 0) == "recompute"
    assert budget.keeping(cut, layout("standard"), 1) == "live"


def test_running_again_takes_time_and_overlapped_transfers_do_not(chain):
    none = memory.predict_capture(chain, layout("none")).throughput
    times = {
        kind: memory.predict_capture(chain, layout(kind, **more)).throughput.stages[0]
        for kind, more in (
            ("standard", {}),
            ("checkpoints", {"checkpoints": ("layers.5",)}),
        )
    }
    forward = times["checkpoints"].recomputed
    assert 0 < times["standard"].recomputed < forward
    assert times["checkpoints"].cycles == pytest.approx(none.stages[0].cycles + forward)
    tiles = layout("none", io_tiles=32)
    hidden = memory.predict_capture(chain, dataclasses.replace(tiles, overlap_io=True)).throughput
    shown = memory.predict_capture(chain, tiles).throughput
    assert hidden.stages[0].transfers == 0 < shown.stages[0].transfers
    assert sum(shown.stages[0].kinds.values()) > sum(none.stages[0].kinds.values())
