"""How convolutions are split over tiles, and what the split takes, against numbers by hand."""

from __future__ import annotations

import csv
import pathlib

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.memory.convolutions import needed, temporaries
from ipu_proxynorm.memory.geometry import (
    Geometry,
    Pass,
    forward_pass,
    geometry,
    input_pass,
    passes,
    weight_pass,
)

BENCH = pathlib.Path(__file__).parents[2] / "benchmarks/data/poplibs_bench.csv"
TILES, BOUND = 1472, 0.6 * 638_976


def only(values):
    """The value that is the only likely one: there is one plan."""
    assert len(set(values)) == 1
    return values[0]


def test_one_block_on_one_tile():
    """16 inputs, 16 x 8 weights of 2 bytes, 8 partial sums of 4."""
    work = Pass(images=1, field=1, channels=16, outputs=8)
    assert only(temporaries(work, 1, BOUND, 2, False)) == 16 * 2 + 128 * 2 + 8 * 4
    # Partial sums of the results' own type, not summed elsewhere, are the results.
    assert only(temporaries(work, 1, BOUND, 2, True)) == 16 * 2 + 128 * 2
    assert only(temporaries(work, 1, BOUND, 4, False)) == 16 * 4 + 128 * 4


def test_output_channels_one_after_another_are_those_of_a_tile():
    """Two blocks of 8: on one tile one after the other, or one on each of two tiles."""
    work = Pass(images=1, field=1, channels=16, outputs=16)
    one, two = (16 + blocks * 128 for blocks in (1, 2))
    assert set(temporaries(work, 1, 2 * two + 64, 2, False)) == {2 * two + 64, 2 * one + 32}
    assert only(temporaries(work, 1, 2 * two, 2, False)) == 2 * one + 32
    # A block is not cut further, however little there may be of it at once.
    assert only(temporaries(work, 2, one, 2, False)) in (2 * one + 32, 2 * (2 * one + 32))


def test_a_kernel_reads_its_neighbourhood_and_a_stride_of_one_place_only_what_it_meets():
    def received(**sizes):
        whole = Pass(images=1, field=36, channels=16, outputs=8, **sizes)
        weights = 16 * 8 * sizes.get("window", 1) * 2
        return only(temporaries(whole, 1, BOUND, 2, True)) - weights

    assert received() == 36 * 16 * 2
    assert received(window=9) == pytest.approx(8 * 8 * 16 * 2)
    assert received(window=9, stride=2) == pytest.approx(13 * 13 * 16 * 2)
    assert received(stride=2) == 36 * 16 * 2


def test_passes_of_a_strided_convolution():
    network = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), network)
    capture = memory.capture(model, [torch.zeros(4, 3, 20, 20)])
    forward, *_ = (o for o in capture.forward(0) if o.layer == "1" and o.passes)
    sizes = geometry(capture, forward)
    assert sizes == Geometry(4, 1, 16, 32, window=9, field_in=400, field_out=100)
    assert (sizes.stride, sizes.dilation, sizes.is_narrow) == (2, 1, False)
    (backward,) = (o for o in capture.backward(0) if o.layer == "1" and o.passes)
    image, weight = passes(capture, backward)
    assert (image.field, image.channels, image.outputs) == (400, 32, 16)
    assert (image.stride, image.dilation, image.spread) == (1, 2, True)
    # The sum over images and places is the inner size of the weight's gradient.
    assert (weight.images, weight.field, weight.channels, weight.outputs) == (16, 9, 400, 32)
    assert weight.rearranged == 4 * 16 * 400
    # Of the first layer, whose input has no gradient, the weight's is left.
    (first,) = (o for o in capture.backward(0) if o.layer == "0" and o.passes)
    assert [p.gathered for p in passes(capture, first)] == [True]


def test_groups_transposes_and_matrix_products():
    grouped = nn.Conv2d(32, 64, 3, groups=8, padding=1)
    up = nn.ConvTranspose2d(64, 16, 2, stride=2)
    model = nn.Sequential(grouped, up, nn.Flatten(), nn.Linear(16 * 16 * 16, 10))
    capture = memory.capture(model, [torch.zeros(3, 32, 8, 8)], training=False)
    found = [geometry(capture, o) for o in capture.operators if o.passes]
    assert found[0] == Geometry(3, 8, 4, 8, window=9, field_in=64, field_out=64)
    assert found[0].is_narrow
    assert found[1] == Geometry(3, 1, 64, 16, window=4, field_in=64, field_out=256)
    assert (found[1].stride, found[1].dilation) == (1, 2)
    assert found[2] == Geometry(3, 1, 16 * 16 * 16, 10)


def test_temporaries_keep_to_the_bound_where_a_plan_does():
    sizes = Geometry(32, 1, 256, 256, window=9, field_in=196, field_out=196)
    for of in (forward_pass, input_pass, weight_pass):
        before = float("inf")
        for share in (0.6, 0.2, 0.1):
            found = temporaries(of(sizes), TILES, share * 638_976, 2, False)
            assert list(found) == sorted(found)
            assert found.mean() <= before
            assert found[-1] <= share * 638_976 * TILES
            before = found.mean()


def test_what_takes_more():
    def expected(products, element_bytes, half_partials):
        return needed(products, TILES, BOUND, element_bytes, half_partials).mean()

    sizes = Geometry(16, 1, 64, 256, field_in=3136, field_out=3136)
    forward = [forward_pass(sizes)]
    half = expected(forward, 2, True)
    assert half < 0.8 * expected(forward, 2, False)
    assert half < 0.6 * expected(forward, 4, True)
    deep = Geometry(16, 144, 1, 1, window=9, field_in=3136, field_out=3136)
    narrow = expected([forward_pass(deep)], 2, False)
    # Regrouped twice, gathered with its border, float32 sums: above 10 bytes an element.
    assert 10 < narrow / (16 * 144 * 3136) < 20
    assert expected([], 2, False) == 0


def test_a_forward_pass_of_many_images_takes_less_than_the_work_suggests():
    """ResNet-50's second layer, 90 images in inference: twenty times the work of a batch of 4."""
    small, large = (
        needed(
            [forward_pass(Geometry(images, 1, 64, 256, field_in=3136, field_out=3136))],
            TILES,
            BOUND,
            2,
            half_partials=True,
        ).mean()
        for images in (4, 90)
    )
    # At the least the input itself is received: 36 MB of 90 images.
    assert 90 * 64 * 3136 * 2 < large < 8 * small


def test_matrix_products_that_the_compiler_measured():
    """54 products of graphcore/poplibs' table, which nothing was fitted to.

    In them are both operands, the result, and the matrix that it is added to; 8 MB of code.
    """
    ratios = []
    for row in csv.DictReader(BENCH.read_text().splitlines()):
        if row["kind"] == "matrix product":
            rows, inner, columns = (int(n) for n in row["shape"].split()[0].split("x"))
            chip = memory.CHIPS["mk1" if row["target"] == "IpuModel1" else "mk2"]
            tensors = 2 * (rows * inner + inner * columns + 2 * rows * columns)
            # poplibs takes either factor as the one that is loaded as weights.
            planned = min(
                temporaries(
                    forward_pass(Geometry(first, 1, inner, last)),
                    chip.tiles,
                    0.6 * chip.tile_bytes,
                    2,
                    half_partials=False,
                ).mean()
                for first, last in ((rows, columns), (columns, rows))
            )
            ratios.append((float(row["total_bytes"]) - tensors - 8e6) / planned)
    assert len(ratios) == 54
    assert 1 < sorted(ratios)[27] < 1.3
    assert sum(0.6 < ratio < 1.7 for ratio in ratios) >= 0.85 * len(ratios)
