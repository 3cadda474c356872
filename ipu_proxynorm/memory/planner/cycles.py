"""How long an operator takes on an IPU: a simple model, for balancing stages against each other.

Convolutions: cycles of all three passes together, fitted to the 78 single convolutions (float16,
batch 4) whose cycles Graphcore's poplibs repository recorded (`tests/benchmark_results.csv`). Dense
ones: 15,000 + 0.0735 a multiply-add of a tile + 0.52 an element of input and output of a tile + 4.3
a weight of a tile; median error 3 %, nine of ten within 13 %. Depthwise ones: 10,000 + 9.33 an
element; median error 13 %, nine of ten within 36 %. Each pass is taken for a third.

Everything else moves memory: two float16 elements a cycle and tile, half of what a tile's load and
store units can (16 bytes loaded and 8 stored a cycle). This has not been measured; it decides
little where convolutions dominate, and nothing about whether a program fits.
"""

from __future__ import annotations

import dataclasses
import math

from ipu_proxynorm.memory.chip import Chip
from ipu_proxynorm.memory.graph import Capture, OperatorRecord

# Per pass: the fits above over three.
DENSE = (15026 / 3, 0.0735, 0.52 / 3, 4.33 / 3)
DEPTHWISE = (10055 / 3, 9.33 / 3)
#: Input channels that the multiply-accumulate unit takes at once, in float16: a group of fewer
#: leaves the rest idle.
CHANNELS_AT_ONCE = 16
BYTES_A_CYCLE = 4.0
#: Cycles to start an operator: its exchange and its synchronisation.
START = 500.0

#: Clocks of the chips, hertz, after Graphcore's data sheets.
CLOCKS = {"mk1": 1.6e9, "mk2": 1.33e9, "bow": 1.85e9}
#: Between two IPUs, one way, bytes a second: 512 Gbit/s (Bow-2000 data sheet).
LINK_BYTES_PER_SECOND = 64e9
#: From an IPU to its Streaming Memory, bytes a second: PCIe Gen4 x8 to a gateway that four IPUs
#: share (IPU-M2000's block diagram).
STREAMING_BYTES_PER_SECOND = 16e9 / 4


def clock_hertz(chip: Chip) -> float:
    """Return a chip's clock; one that is not sold has a Mk2's."""
    return CLOCKS.get(chip.name, CLOCKS["mk2"])


@dataclasses.dataclass(frozen=True)
class Work:
    """What decides the time of one operator.

    Attributes:
        macs: multiply-adds.
        elements: of the activations that it reads and makes.
        weights: elements of its weight.
        group_channels: input channels of a group; 0: no convolution or matrix product.
        bytes: of all that it reads and makes.
    """

    macs: int
    elements: int
    weights: int
    group_channels: int
    bytes: int


def cycles(work: Work, tiles: int, float32: bool = False) -> float:
    """Return the cycles of one operator on ``tiles`` tiles.

    In float32 a multiply-accumulate unit does half as much, and twice the bytes are moved.
    """
    if work.group_channels == 0:
        return START + work.bytes / BYTES_A_CYCLE / tiles
    slower = 2.0 if float32 else 1.0
    if work.group_channels == 1:
        fixed, element = DEPTHWISE
        return fixed + slower * element * work.elements / tiles
    idle = CHANNELS_AT_ONCE / min(CHANNELS_AT_ONCE, work.group_channels)
    fixed, mac, element, weight = DENSE
    each = idle * mac * work.macs + element * work.elements + weight * work.weights
    return fixed + slower * each / tiles


def operator_cycles(capture: Capture, operator: OperatorRecord, chip: Chip, float32: bool) -> float:
    """Return the cycles of a captured operator; a convolution's gradients count as two passes."""
    work = work_of(capture, operator)
    if operator.name != "convolution_backward":
        return cycles(work, chip.tiles, float32)
    passes = sum(1 for index in operator.outputs if len(capture.tensors[index].shape) > 1)
    one = dataclasses.replace(work, macs=work.macs // max(passes, 1))
    return passes * cycles(one, chip.tiles, float32)


def work_of(capture: Capture, operator: OperatorRecord) -> Work:
    """Return what decides the time of a captured operator."""
    tensors = [capture.tensors[index] for index in (*operator.inputs, *operator.outputs)]
    moved = sum(tensor.bytes for tensor in tensors)
    weights = [t for t in tensors if t.role == "parameter" and len(t.shape) > 1]
    if not (operator.is_convolution or operator.is_matmul):
        return Work(0, 0, 0, 0, moved)
    weight = max(weights, key=lambda t: math.prod(t.shape), default=None)
    elements = sum(
        math.prod(t.shape) for t in tensors if t.role in ("activation", "gradient", "input")
    )
    size = math.prod(weight.shape) if weight is not None else 0
    channels = CHANNELS_AT_ONCE
    if operator.is_convolution and weight is not None:
        images = [t for t in tensors if t.role != "parameter" and len(t.shape) == len(weight.shape)]
        # An image of one channel leaves the unit's inputs idle as a group of one does, but its
        # convolution is no depthwise one.
        grouped = weight.shape[1] < min(image.shape[1] for image in images)
        channels = weight.shape[1] if grouped else max(2, weight.shape[1])
    if operator.name == "convolution_backward":
        elements = elements * 2 // 3  # input, its gradient and the output's: a pass moves two
    return Work(operator.macs, elements, size, channels, moved)
