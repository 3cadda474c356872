from __future__ import annotations

import itertools

import numpy as np
import pytest

from ipu_proxynorm.memory.cycles import Speeds, Work, cycles, speeds
from ipu_proxynorm.memory.products import product_cycles, splits

# What the Poplar compiler reported for a Mk2 (graphcore/poplibs, tests/benchmark_results.csv):
# forward pass and both gradients of a dense layer.
DENSE = {
    (16, 1000, 1000, False): 19538,
    (16, 1000, 1000, True): 19388,
    (8, 1000, 5, False): 9178,
    (1, 1000, 1000, False): 12185,
    (1440, 200, 400, False): 36606,
    (80, 1324, 100, False): 15177,
}
NUMBERS = {
    "bytes_per_cycle": 4.0,
    "sharing": 2.0,
    "compute": 1.0,
    "partial_bytes": 4,
    "adding": 500.0,
}


@pytest.mark.parametrize(("rows", "inputs", "outputs", "float32"), DENSE)
def test_a_dense_layer_takes_what_the_compiler_reported(rows, inputs, outputs, float32):
    passes = [
        Work("matmul", shape=(rows, inputs, outputs)),
        Work("matmul", shape=(rows, outputs, inputs), rearranged=True),
        Work("matmul", shape=(inputs, rows, outputs), rearranged=True),
    ]
    predicted = sum(cycles(work, 1472, speeds()[0], float32, False) for work in passes)
    measured = DENSE[rows, inputs, outputs, float32]
    assert predicted == pytest.approx(measured, rel=0.3)


def test_a_split_covers_the_product_and_fits_the_tiles():
    found = splits(64, 128, 256, False, 16)
    # Of 16 tiles each has at least a sixteenth of the multiply-adds: 16 x 8 of them in 4 cycles.
    assert found.compute.min() >= 64 * 128 * 256 / 16 / 32
    # Where nothing is added a tile has whole inner products.
    whole = found.partials == 0
    assert whole.any()
    assert not whole.all()
    rows, columns = found.shared[whole] / (2 * 128), found.own[whole] / (2 * 128)
    assert np.all(rows * columns * 16 >= 64 * 256)


def test_one_tile_has_one_split():
    found = splits(4, 16, 8, False, 1)
    assert found.compute.tolist() == [50 + 15 + 26 + 64 + 6 * 20 + 4 * 6]
    assert (found.shared.tolist(), found.own.tolist()) == ([2 * 4 * 16], [2 * 16 * 8])
    assert found.partials.tolist() == [0]


@pytest.mark.parametrize("shape", [(3, 7, 5), (128, 64, 128), (1, 4096, 1000)])
def test_products_cost_the_same_either_way_round_and_more_where_there_are_more(shape):
    rows, inner, columns = shape
    for float32, tiles in itertools.product((False, True), (1216, 1472)):
        one = product_cycles(shape, 1, float32, tiles, **NUMBERS)
        assert one == product_cycles((columns, inner, rows), 1, float32, tiles, **NUMBERS)
        many = [product_cycles(shape, n, float32, tiles, **NUMBERS) for n in (1, 12, 200, 5000)]
        assert many == sorted(many)
        assert product_cycles(shape, 2 * tiles, float32, tiles, **NUMBERS) == 2 * (
            product_cycles(shape, tiles, float32, tiles, **NUMBERS)
        )


def test_rearranging_takes_no_longer_for_wider_elements_but_their_exchange():
    speed = Speeds()
    shape = (1000, 1000, 1000)
    extra = [
        cycles(Work("matmul", shape=shape, rearranged=True), 1472, speed, float32, False)
        - cycles(Work("matmul", shape=shape), 1472, speed, float32, False)
        for float32 in (False, True)
    ]
    assert extra[1] - extra[0] == pytest.approx(3e6 / 1472 * 2 / speed.exchange_bytes)
