"""How long an operator takes on an IPU, in cycles, by kind and size.

Every kind has a few numbers (`Speeds`), fitted to what the Poplar compiler reported for single
operators (graphcore/poplibs, ``tests/benchmark_results.csv``) and, where no single operator was
published, to measured throughputs of whole programs: ``benchmarks/time_calibrate.py``.
How good it is: ``benchmarks/throughput_accuracy.py`` and ``docs/throughput.md``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from typing import Dict, Sequence, Tuple

from ipu_proxynorm.chip import Chip
from ipu_proxynorm.memory.budget import LEAST_BYTES_A_TILE
from ipu_proxynorm.memory.geometry import CHANNELS_IN, CHANNELS_OUT, geometry
from ipu_proxynorm.memory.graph import Capture, OperatorRecord
from ipu_proxynorm.memory.products import product_cycles

_FILE = os.path.join(os.path.dirname(__file__), "data", "speeds.json")

#: Up to so many bytes two tensors of one shape are mapped alike: linearly, a part to each tile
#: (1,216 tiles, the fewest of a chip).
LINEAR_BYTES = LEAST_BYTES_A_TILE * 1216
#: Between two IPUs, one way, bytes a second: 512 Gbit/s (Bow-2000 data sheet).
LINK_BYTES_PER_SECOND = 64e9
#: From an IPU to the host or its Streaming Memory, bytes a second: PCIe Gen4 x8 to a gateway that
#: four IPUs share (IPU-M2000's block diagram).
STREAMING_BYTES_PER_SECOND = 16e9 / 4


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What a kind of operator costs: cycles to start, and cycles for each unit of a tile's share.

    Attributes:
        product_start: a pass of a convolution.
        product_mac: a multiply-add, float16 with float32 partials, all channels in use.
        product_element: an element of input and output of a pass.
        product_weight: an element of the weight.
        half_partials: factor on multiply-adds with float16 partials.
        depthwise_start: a pass of a convolution whose groups are single channels.
        depthwise_element: an element of its input and output, kernel of 3 x 3.
        matmul_start: a matrix product.
        matmul_compute: factor on what poplibs estimates for the multiply-accumulate unit.
        matmul_adding: to start the sum of partial results, where the inner size is split.
        matmul_rearranging: to start the rearrangement of factors that lie in another order.
        matmul_rearranged: an element of them and of the result.
        matmul_accumulating: to start the addition of the product to what exists (a bias).
        matmul_accumulated: an element of that.
        exchange_bytes: bytes that a tile receives in a cycle.
        exchange_sharing: factor on that where two neighbours receive the same.
        reduction_start: a sum, a mean or a maximum over dimensions, in two steps: on each tile,
            then between tiles.
        reduction_single: the same where there are results for every tile: one step is enough.
        reduction_byte: a byte that it reads.
        pool_start: a pooling over windows.
        pool_read: an element of its larger tensor.
        pool_written: an element of its smaller tensor, window of 3 x 3.
        start: any other operator: exchange and synchronisation.
        local_start: one of them whose tiles need nothing of each other: synchronisation alone.
        byte: a byte that it reads or writes.
        link_efficiency: share of the link's data-sheet speed that an all-reduce has.
    """

    product_start: float = 5140.0
    product_mac: float = 0.073
    product_element: float = 0.28
    product_weight: float = 1.2
    half_partials: float = 0.5
    depthwise_start: float = 3350.0
    depthwise_element: float = 3.1
    matmul_start: float = 1500.0
    matmul_compute: float = 1.0
    matmul_adding: float = 500.0
    matmul_rearranging: float = 600.0
    matmul_rearranged: float = 1.0
    matmul_accumulating: float = 1000.0
    matmul_accumulated: float = 1.5
    exchange_bytes: float = 4.0
    exchange_sharing: float = 2.0
    reduction_start: float = 2300.0
    reduction_single: float = 1400.0
    reduction_byte: float = 0.5
    pool_start: float = 3800.0
    pool_read: float = 0.1
    pool_written: float = 15.0
    start: float = 2500.0
    local_start: float = 330.0
    byte: float = 0.4
    link_efficiency: float = 0.4


@functools.lru_cache(maxsize=None)
def speeds() -> Tuple[Speeds, ...]:
    """Return the speeds shipped with the package, the most central ones first."""
    with open(_FILE) as file:
        return tuple(Speeds(**entry) for entry in json.load(file)["ensemble"])


#: Kinds of operators, as tables of time name them.
KINDS = ("convolution", "depthwise", "matmul", "norm", "pooling", "reduction", "elementwise")

_NORMS = ("native_group_norm", "native_batch_norm", "native_layer_norm", "_native_batch_norm_legit")
# Passes that reduce the input (two together) and that write a tensor of its size, as poplibs runs
# them (``poplin/Norms.cpp``). Forward: sum, sum of squares; mean off, scaled, weight, bias.
# Backward: both sums for the parameters, both for the statistics; input normalised again (2), its
# products with the gradient (2), weight, copy, corrections (3), scaled.
_NORM_FORWARD, _NORM_BACKWARD = (2, 4), (4, 10)
_REDUCTIONS = (
    "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "var", "var_mean",
    "std", "norm", "linalg_vector_norm", "logsumexp", "cumsum", "any", "all",
)  # fmt: skip
_SOFTMAX = ("_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data")
# What PopART makes constants of, or views.
_FREE = (
    "zeros", "ones", "new_ones", "new_zeros", "zeros_like", "ones_like", "empty_like", "full_like",
    "detach",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
    """What decides the time of one operator.

    Attributes:
        kind: one of `KINDS`; "" takes no time.
        passes: how often the work described is done, e.g. 2 for both gradients of a convolution.
        macs: multiply-adds of a pass.
        elements: of the activations that a pass reads and makes; of a pooling, its larger tensor.
        weights: elements of the weight; of a pooling, its smaller tensor; of a reduction, of the
            result.
        channels: input channels of a group.
        outputs: output channels of a group.
        window: places of the kernel.
        bytes: that the operator reads and makes.
        reductions: passes over `largest` that reduce it.
        joint: so many of them are done together.
        sweeps: passes over `largest` that read and write it.
        largest: bytes of its largest tensor.
        local: whether an elementwise operator's tiles need nothing of each other.
        shape: rows, inner size and columns of a matrix product.
        groups: products of that shape.
        rearranged: whether the factors of a product lie in another order than its plan wants: of
            gradients, whose factors the forward pass has placed.
        accumulated: whether a product is added to what exists.
    """

    kind: str
    passes: int = 1
    macs: int = 0
    elements: int = 0
    weights: int = 0
    channels: int = CHANNELS_IN
    outputs: int = CHANNELS_OUT
    window: int = 1
    bytes: int = 0
    reductions: int = 0
    joint: int = 1
    sweeps: int = 0
    largest: int = 0
    local: bool = False
    shape: Tuple[int, int, int] = (0, 0, 0)
    groups: int = 1
    rearranged: bool = False
    accumulated: bool = False


def idle(channels: int, outputs: int, window: int) -> float:
    """Return by what factor channels that fill no unit lengthen a convolution.

    Fewer channels than the unit takes are filled up, with places of the kernel where that is less:
    7 x 7 x 3 become 147 input channels of a 1 x 1 kernel (poplibs flattens kernels so).
    """

    def padded(count: int, unit: int) -> float:
        return -(-count // unit) * unit / count

    taken = padded(channels, CHANNELS_IN)
    if channels < CHANNELS_IN:
        taken = min(taken, padded(channels * window, CHANNELS_IN))
    return taken * padded(outputs, CHANNELS_OUT)


def cycles(work: Work, tiles: int, speed: Speeds, float32: bool, half_partials: bool) -> float:
    """Return the cycles of one operator on ``tiles`` tiles.

    In float32 a multiply-accumulate unit does half as much; ``half_partials`` concern float16.
    """
    slower = 2.0 if float32 else 1.0
    if work.kind == "convolution":
        mac = speed.product_mac * idle(work.channels, work.outputs, work.window) * slower
        mac *= speed.half_partials if half_partials and not float32 else 1.0
        moved = speed.product_element * work.elements + speed.product_weight * work.weights
        return work.passes * (speed.product_start + (mac * work.macs + slower * moved) / tiles)
    if work.kind == "depthwise":
        element = slower * speed.depthwise_element * work.window / 9
        return work.passes * (speed.depthwise_start + element * work.elements / tiles)
    if work.kind == "matmul":
        return work.passes * _matmul(work, tiles, speed, float32, half_partials and not float32)
    if work.kind == "pooling":
        written = speed.pool_written * work.weights * work.window / 9
        return speed.pool_start + slower * (speed.pool_read * work.elements + written) / tiles
    if not work.kind:
        return 0.0
    start = speed.reduction_single if work.weights >= tiles else speed.reduction_start
    reduced = start / work.joint + speed.reduction_byte * work.largest / tiles
    swept = speed.start + speed.byte * 2 * work.largest / tiles
    plain = 0.0
    if work.kind == "elementwise":
        plain = speed.local_start if work.local else speed.start
        plain += speed.byte * work.bytes / tiles
    return plain + work.reductions * reduced + work.sweeps * swept


def _matmul(work: Work, tiles: int, speed: Speeds, float32: bool, half_partials: bool) -> float:
    rows, inner, columns = work.shape
    found = speed.matmul_start + product_cycles(
        work.shape,
        work.groups,
        float32,
        tiles,
        bytes_per_cycle=speed.exchange_bytes,
        sharing=speed.exchange_sharing,
        compute=speed.matmul_compute * (speed.half_partials if half_partials else 1.0),
        partial_bytes=2 if half_partials else 4,
        adding=speed.matmul_adding,
    )
    if work.rearranged:
        # One element a cycle whatever its type, then exchanged (poplibs, ``ConvModel.cpp:1462``).
        moved = work.groups * (rows * inner + inner * columns + rows * columns) / tiles
        element = speed.matmul_rearranged + (4 if float32 else 2) / speed.exchange_bytes
        found += speed.matmul_rearranging + element * moved
    if work.accumulated:
        added = work.groups * rows * columns / tiles
        found += speed.matmul_accumulating + speed.matmul_accumulated * added
    return found


def work_of(capture: Capture, operator: OperatorRecord) -> Work:
    """Return what decides the time of a captured operator."""
    if operator.is_convolution:
        return _convolution(capture, operator)
    if operator.is_matmul:
        return _product(capture, operator)
    tensors = [capture.tensors[index] for index in (*operator.inputs, *operator.outputs)]
    largest = max((tensor.bytes for tensor in tensors), default=0)
    moved = sum(tensor.bytes for tensor in tensors)
    name = operator.name.rstrip("_")
    backward = name.endswith("_backward")
    if not moved or name in _FREE:
        return Work("")
    if name.startswith(_NORMS):
        reductions, sweeps = _NORM_BACKWARD if backward else _NORM_FORWARD
        return Work("norm", reductions=reductions, joint=2, sweeps=sweeps, largest=largest)
    if "pool" in name:
        return _pooling(capture, operator)
    if name in _SOFTMAX:
        return Work("reduction", reductions=2, sweeps=2, largest=largest)
    if name in _REDUCTIONS:
        results = max((math.prod(capture.tensors[i].shape) for i in operator.outputs), default=1)
        return Work("reduction", weights=results, reductions=1, largest=largest)
    return Work("elementwise", bytes=moved, local=_is_local(capture, operator))


def _is_local(capture: Capture, operator: OperatorRecord) -> bool:
    """Return whether every tile has all that it needs of a pointwise operator's operands.

    The result lies where an operand lies (popops, ``ElementWise.cpp``), and so do other operands
    that were made like it; several that are too small for all tiles are all mapped linearly.
    """
    if not operator.is_pointwise:
        return False
    tensors = [capture.tensors[index] for index in (*operator.inputs, *operator.outputs)]
    if len({tensor.shape for tensor in tensors}) != 1:
        return False  # the smaller one is sent round
    small = max(tensor.bytes for tensor in tensors) <= LINEAR_BYTES
    return small or len({capture.places[index] for index in operator.inputs}) == 1


def _convolution(capture: Capture, operator: OperatorRecord) -> Work:
    sizes = geometry(capture, operator)
    passes = max(1, operator.passes)
    inputs = sizes.images * sizes.groups * sizes.channels * sizes.field_in
    results = sizes.images * sizes.groups * sizes.outputs * sizes.field_out
    return Work(
        "depthwise" if sizes.channels == 1 and sizes.groups > 1 else "convolution",
        passes=passes,
        macs=operator.macs // passes,
        elements=inputs + results,
        weights=sizes.groups * sizes.channels * sizes.outputs * sizes.window,
        channels=sizes.channels,
        outputs=sizes.outputs,
        window=sizes.window,
    )


def _product(capture: Capture, operator: OperatorRecord) -> Work:
    sizes = geometry(capture, operator)
    return Work(
        "matmul",
        macs=operator.macs,
        shape=(sizes.images, sizes.channels, sizes.outputs),
        groups=sizes.groups,
        rearranged=operator.backward,
        accumulated=operator.name in ("addmm", "baddbmm"),
    )


def _pooling(capture: Capture, operator: OperatorRecord) -> Work:
    sizes = sorted(
        {math.prod(capture.tensors[index].shape) for index in (*operator.inputs, *operator.outputs)}
    )
    ratio = sizes[-1] / max(1, sizes[0])
    # A window overlaps its neighbour by one place on each side, as 3 x 3 with stride 2 does.
    window = min(9, max(4, round(ratio * 9 / 4))) if ratio > 1 else 9
    return Work("pooling", elements=sizes[-1], weights=sizes[0], window=window)


def by_kind(
    capture: Capture,
    operators: Sequence[OperatorRecord],
    chip: Chip,
    speed: Speeds,
    precision: str,
    half_partials: bool,
    stable_norm: bool = False,
) -> Dict[str, float]:
    """Return the cycles of operators by their kind; see `Layout`.

    A stable norm takes its mean before the sum of squares, of a copy less the mean.
    """
    found = dict.fromkeys(KINDS, 0.0)
    for operator in operators:
        work = work_of(capture, operator)
        if stable_norm and work.kind == "norm" and not operator.backward:
            work = dataclasses.replace(work, joint=1, sweeps=work.sweeps + 1)
        if work.kind:
            found[work.kind] += cycles(work, chip.tiles, speed, precision == "32.32", half_partials)
    return found
