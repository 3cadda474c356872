"""Memory that convolutions and matrix products need while they run, besides their tensors.

poplibs splits a product over the tiles so that it takes fewest cycles and its temporaries, on each
tile, stay within the available memory proportion (``poplin/ConvPlan.cpp``). So does this, with the
larger terms of its estimates of both (``poplin/ConvModel.cpp``).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Sequence

import numpy as np

from ipu_proxynorm.memory.calibration import Parameters
from ipu_proxynorm.memory.geometry import CHANNELS_IN, CHANNELS_OUT, Pass
from ipu_proxynorm.memory.products import counts

_WORKERS = 6
# Cycles of a vertex: to start, for a block of inputs, for a block of inputs and results (weights
# loaded, workers started), and of a row (``PerformanceEstimation.hpp``); bytes a cycle that a tile
# receives, twice as many where its neighbour receives the same.
_START, _OUTER, _BLOCK, _ROW = 50, 15, 210, 4
_RECEIVED, _SHARED = 4, 8
# Where partial sums are added: cycles to start, and each.
_ADDING, _ADDED = 500, 0.375
# Results of a group of one channel that a tile makes in a cycle and place of the kernel.
_DEPTHWISE = 4
# The output channels of a product that needs too much at once are computed one part after another.
_SERIAL = (1, 2, 4, 8, 16)
_AGAIN = 200
# By what factor one number of parts that is tried is above the next.
_STEP = 1.35
# How much dearer a plan may be before it hardly counts: the estimates are no better than that.
_NEAR = 0.2
#: How many equally likely values stand for what one product may take.
LIKELY = 12
_CHANCES = (np.arange(LIKELY) + 0.5) / LIKELY

Array = np.ndarray  # of float64: `LIKELY` values, bytes, the smallest first


@dataclasses.dataclass(frozen=True)
class _Plans:
    """Every way to split a pass over tiles: on the fullest tile, cycles and elements.

    Attributes:
        cycles: of each plan, partial sums of 4 bytes.
        used: tiles that have work.
        inputs: elements that a tile receives of the images.
        weights: elements that it receives of the weight.
        results: partial results that it makes.
        added: whether partial results are added to those of other tiles.
        blocks: of output channels that it makes.
    """

    cycles: Any
    used: Any
    inputs: Any
    weights: Any
    results: Any
    added: Any
    blocks: Any


@functools.lru_cache(maxsize=256)
def _plans(work: Pass, tiles: int, element_bytes: int, partial_bytes: int) -> _Plans:
    unit = CHANNELS_IN * 2 // element_bytes
    # Groups of fewer channels than the unit takes stand side by side in it (poplibs,
    # combineConvGroups), a lone group's channels are filled up with places of the kernel.
    narrow = work.narrow and work.channels < unit
    block = min(unit, work.channels)
    made = min(CHANNELS_OUT, work.outputs) if narrow else CHANNELS_OUT
    blocks = -(-work.channels // block)
    axes = (
        counts(work.images * work.field, tiles, _STEP),
        counts(-(-work.outputs // made), tiles, _STEP),
        counts(blocks * work.window, tiles, _STEP),
        counts(work.groups, tiles, _STEP),
    )
    rows, columns, inner, groups = np.meshgrid(*axes, indexing="ij")
    used = rows * columns * inner * groups
    fitting = used <= tiles
    rows, columns, inner, groups, used = (a[fitting] for a in (rows, columns, inner, groups, used))
    own_groups = np.ceil(work.groups / groups)
    own_rows = np.ceil(work.images * work.field / rows)
    field = np.minimum(own_rows, work.field)
    images = np.maximum(1, np.ceil(own_rows / work.field))
    own_columns = np.ceil(np.ceil(work.outputs / made) / columns)
    own_inner = np.ceil(blocks * work.window / inner)
    channels = np.minimum(own_inner, blocks)
    results = own_groups * images * field * np.minimum(own_columns * made, work.outputs)
    inputs = own_groups * images * _read(work, field, own_inner / channels, narrow)
    inputs = inputs * channels * block
    weights = own_groups * own_columns * made * own_inner * block
    row = _ROW * element_bytes / 2 * partial_bytes / 4 * _WORKERS
    row = row * np.ceil(images * field / _WORKERS)
    if narrow and work.channels == 1:
        compute = _START + np.ceil(own_groups * images * field / _DEPTHWISE) * own_inner
    else:
        # Zeros between inputs are left out.
        filled = np.ceil(own_inner * block / unit / (work.dilation**work.dimensions))
        beside = max(1, unit // work.channels) if narrow else 1
        own = np.ceil(own_groups / beside)
        compute = own * (_START + filled * (_OUTER + own_columns * (_BLOCK + row)))
    added = inner > 1
    exchanged = inputs * element_bytes / _SHARED + weights * element_bytes / _RECEIVED
    summed = added * (_ADDING + results * (partial_bytes / _RECEIVED + _ADDED))
    cycles = compute + exchanged + summed
    return _Plans(cycles, used, inputs, weights, results, added, own_columns)


def _read(work: Pass, field: Any, window: Any, narrow: bool) -> Any:
    """Return the input places that a part of a field reads.

    Of a kernel smaller than the stride only what it meets; vertices for groups of few channels
    have zeros between inputs written out (``ConvModel.cpp:889``).
    """
    root = 1 / work.dimensions
    side, kernel = field**root, np.maximum(1, window) ** root
    if work.gathered:  # neighbouring places of the kernel share all but one line
        return side
    places = np.where(kernel >= work.stride, (side - 1) * work.stride + kernel, side * kernel)
    if work.spread and not narrow:
        places = np.maximum(1, places / work.dilation)
    return places**work.dimensions


@functools.lru_cache(maxsize=65536)
def temporaries(
    work: Pass, tiles: int, bound: float, element_bytes: int, half_partials: bool
) -> Array:
    """Return what the temporaries of one pass may be on all tiles: equally likely bytes, sorted.

    On each tile what it receives of images and weight, and its partial results: in float32 unless
    ``half_partials``. Partial results of the results' own type that need no sum are the results,
    which are a tensor and not counted. Rearranged operands are there twice. Which of the plans that
    cost nearly the same poplibs takes is not known: each is the likelier the cheaper it is.

    Args:
        work: the product.
        tiles: of the chip.
        bound: bytes that the available memory proportion allows on a tile; where no plan keeps to
            it, the one of least memory is taken.
        element_bytes: of the data: 2 or 4.
        half_partials: partial sums in float16; of float16 data only.
    """
    partial_bytes = 2 if half_partials and element_bytes == 2 else 4
    plans = _plans(work, tiles, element_bytes, partial_bytes)
    twice = 2.0 * element_bytes * work.rearranged
    if work.gathered and work.narrow:  # each place by itself: nothing to be summed elsewhere
        return np.full(LIKELY, twice)
    costs, needs, counted = [], [], []
    for parts in _SERIAL:
        # A tile computes its own blocks one after another (``ConvModel.cpp:3384``).
        share = np.ceil(plans.blocks / parts) / plans.blocks
        operands = element_bytes * (plans.inputs + plans.weights * share)
        partials = partial_bytes * plans.results * share
        kept = plans.added | work.narrow | (partial_bytes != element_bytes) | (parts > 1)
        again = (parts - 1) * (plans.inputs * element_bytes / _SHARED + _AGAIN)
        costs.append(np.where(parts <= plans.blocks, plans.cycles + again, np.inf))
        needs.append(np.maximum(operands + partials, twice / tiles))
        own = plans.used * (operands + partials * kept)
        counted.append(own + twice if work.narrow else np.maximum(own, twice))
    cost, need, total = (np.concatenate(found) for found in (costs, needs, counted))
    # One part is always possible.
    need = np.where(np.isfinite(cost), need, np.inf)
    fitting = need <= bound
    if not fitting.any():
        return np.full(LIKELY, total[need.argmin()])
    cost, total = cost[fitting], total[fitting]
    order = np.argsort(total)
    chances = np.cumsum(np.exp((1 - cost / cost.min()) / _NEAR)[order])
    return total[order][np.searchsorted(chances, _CHANCES * chances[-1])]


def needed(
    products: Sequence[Pass], tiles: int, bound: float, element_bytes: int, half_partials: bool
) -> Array:
    """Return what an operator may need whose passes take turns; zeros of none.

    Passes of one operator multiply the same sizes and are planned alike.
    """
    found = [temporaries(p, tiles, bound, element_bytes, half_partials) for p in products]
    return np.max(found, axis=0) if found else np.zeros(LIKELY)


def single_convolution(passes: int, planned: float, parameters: Parameters) -> float:
    """Return what a program of one convolution takes beside its tensors, forward and backward.

    Args:
        passes: how many, each with its code.
        planned: the temporaries that are expected of them, bytes; they take turns.
        parameters: the calibration.
    """
    return parameters.program + passes * parameters.code_product + parameters.temporaries * planned
