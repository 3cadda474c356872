from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.memory.cycles import Speeds, Work, cycles, idle, speeds, work_of

# What the Poplar compiler reported for a Mk2 (graphcore/poplibs, tests/benchmark_results.csv).
# Convolutions: forward, backward and weight update, batch 4.
MEASURED = {
    # ResNet-50: 56x56, 1x1, 64 to 256; 28x28, 3x3, 128 to 128; 7x7, 3x3, 512 to 512 channels.
    "1x1": (Work("convolution", 3, 205520896, 4014080, 16384, 64, 256, 1), 46489),
    "3x3": (Work("convolution", 3, 462422016, 802816, 147456, 128, 128, 9), 82252),
    "3x3, 512 channels": (Work("convolution", 3, 462422016, 200704, 2359296, 512, 512, 9), 81121),
    "first layer, 7x7": (Work("convolution", 3, 629407744, 4014080, 12544, 4, 64, 49), 148450),
    # MobileNet: 28x28, 256 channels, each a group.
    "depthwise": (Work("depthwise", 3, 7225344, 1605632, 2304, 1, 1, 9), 21911),
    "matrix product": (
        Work("matmul", macs=600 * 256 * 10000, shape=(600, 256, 10000), accumulated=True), 64309
    ),
    "reduction": (Work("reduction", weights=32, reductions=1, largest=2 * 802816), 3040),
    "reduction, a result a tile": (
        Work("reduction", weights=2048, reductions=1, largest=2 * 262144), 1466
    ),
    "max-pool, forward and backward": (
        Work("pooling", 1, elements=35 * 35 * 256, weights=35 * 35 * 256, window=9), 14219 / 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_single_operators_take_what_the_compiler_reported(name):
    work, measured = MEASURED[name]
    assert cycles(work, 1472, speeds()[0], False, False) == pytest.approx(measured, rel=0.3)


def test_channels_that_do_not_fill_the_unit_leave_it_idle():
    assert idle(16, 8, 1) == 1
    assert idle(4, 8, 1) == 4
    assert idle(24, 8, 1) == pytest.approx(32 / 24)
    assert idle(3, 8, 49) == pytest.approx(160 / 147)  # places of the kernel fill up
    assert idle(16, 6, 1) == pytest.approx(8 / 6)


def test_types_decide_the_time_of_products():
    work = Work("convolution", 1, 10**10, 10**6, 10**5, 64, 64, 9)
    speed = speeds()[0]
    half, partials, single = (
        cycles(work, 1472, speed, float32, half)
        for float32, half in ((False, False), (False, True), (True, False))
    )
    assert single > 1.8 * half
    assert partials < 0.7 * half
    # float16 partials are of float16 data only.
    assert cycles(work, 1472, speed, True, True) == single


class Parts(nn.Module):
    """One operator of each kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.depthwise = nn.Conv2d(32, 32, 5, groups=32)
        self.grouped = nn.Conv2d(32, 64, 3, groups=4)
        self.norm = nn.GroupNorm(4, 64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.grouped(self.depthwise(self.conv(x)))
        x = nn.functional.max_pool2d(torch.relu(self.norm(x)), 3, 2)
        return self.fc(x.mean((2, 3)))


def test_operators_of_a_program_are_told_apart():
    captured = memory.capture(Parts(), [torch.empty(2, 3, 32, 32)], training=True)
    works = [(o.name, work_of(captured, o)) for o in captured.operators]
    kinds = {work.kind for _, work in works}
    assert kinds >= {"convolution", "depthwise", "matmul", "norm", "pooling", "reduction"}
    convolutions = [work for name, work in works if name == "convolution"]
    assert [(w.channels, w.outputs, w.window) for w in convolutions] == [
        (3, 32, 9),
        (1, 1, 25),
        (8, 16, 9),
    ]
    assert convolutions[0].macs == 2 * 30 * 30 * 32 * 27
    assert convolutions[0].elements == 2 * (3 * 32 * 32 + 32 * 30 * 30)
    gradients = [work for name, work in works if name == "convolution_backward"]
    assert sorted(w.passes for w in gradients) == [1, 2, 2]  # no gradient of the images
    product = next(work for name, work in works if work.kind == "matmul")
    assert (product.macs, product.shape, product.groups) == (1280, (2, 64, 10), 1)
    assert (product.rearranged, product.accumulated) == (False, True)
    gradients = [w for name, w in works if w.kind == "matmul" and w.rearranged]
    assert sorted(w.shape for w in gradients) == [(2, 10, 64), (10, 2, 64)]


class Scaled(nn.Module):
    """A grouped convolution whose weight is computed, as Proxy Norm's scale makes it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(64, 8, 3, 3))
        self.scale = nn.Parameter(torch.empty(4, 1, 8, 1, 1))

    def forward(self, x):
        weight = self.weight.view(4, 16, 8, 3, 3) * self.scale
        return nn.functional.conv2d(x, weight.view(64, 8, 3, 3), groups=4)


def test_a_computed_weight_makes_no_other_convolution():
    captured = memory.capture(Scaled(), [torch.empty(2, 32, 16, 16)], training=True)
    works = [work_of(captured, o) for o in captured.operators if o.is_convolution]
    assert [(w.kind, w.channels, w.outputs, w.window) for w in works] == [
        ("convolution", 8, 16, 9)
    ] * 2


class Small(nn.Module):
    """Operators of channels alone, and of images."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(64))
        self.conv = nn.Conv2d(64, 64, 1)

    def forward(self, x):
        scale = torch.exp(self.scale) * torch.tanh(self.scale)
        y = torch.relu(x * scale.view(64, 1, 1)) + torch.sigmoid(x)
        return y - self.conv(x)


def test_an_operator_whose_tiles_need_nothing_of_each_other_starts_sooner():
    captured = memory.capture(Small(), [torch.empty(8, 64, 56, 56)], training=False)
    local = {
        (o.name, len(captured.tensors[o.outputs[0]].shape)): work_of(captured, o).local
        for o in captured.operators
        if o.outputs and work_of(captured, o).kind == "elementwise"
    }
    assert local == {
        ("exp", 1): True,
        ("tanh", 1): True,
        ("mul", 1): True,  # both are mapped linearly
        ("mul", 4): False,  # a value a channel is sent round
        ("relu", 4): True,
        ("sigmoid", 4): True,
        ("add", 4): True,  # both operands were made like x
        ("sub", 4): False,  # a convolution's result may lie elsewhere
    }
    speed = Speeds()
    there, here = (
        cycles(Work("elementwise", bytes=256, local=local), 1472, speed, False, False)
        for local in (False, True)
    )
    assert there - here == speed.start - speed.local_start


def test_more_of_anything_never_takes_less_time():
    for work, _ in MEASURED.values():
        for field in ("macs", "elements", "weights", "bytes", "largest", "passes", "shape"):
            if work.kind == "reduction" and field == "weights":
                continue  # more results need fewer steps
            value = getattr(work, field)
            twice = tuple(2 * v for v in value) if field == "shape" else 2 * value + 1
            more = dataclasses.replace(work, **{field: twice})
            for speed in speeds():
                assert cycles(more, 1472, speed, False, False) >= cycles(
                    work, 1472, speed, False, False
                )


def test_the_ensemble_is_of_plausible_speeds():
    assert len(speeds()) > 20
    for speed in speeds():
        for name, value in dataclasses.asdict(speed).items():
            assert value > 0, name
        assert 0.3 < speed.half_partials < 1
        assert speed.link_efficiency < 1.5
    assert speeds()[0] != Speeds()
