"""What a convolution or matrix product computes: sizes, groups, strides, and its passes."""

from __future__ import annotations

import dataclasses
import math
from typing import List

from ipu_proxynorm.memory.graph import Capture, OperatorRecord

#: Input channels that the multiply-accumulate unit takes at once in float16, and output channels
#: that it makes: what does not fill them is idle (poplibs, ``ConvPlan.cpp``).
CHANNELS_IN, CHANNELS_OUT = 16, 8


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution; a matrix product is one of 1 x 1 pixel.

    Attributes:
        images: rows of a matrix product.
        groups: products side by side, of the channels that follow.
        channels: input channels of a group.
        outputs: output channels of a group.
        window: places of the kernel.
        field_in: places of an input image.
        field_out: places of an output image.
        dimensions: of a field.
    """

    images: int
    groups: int
    channels: int
    outputs: int
    window: int = 1
    field_in: int = 1
    field_out: int = 1
    dimensions: int = 2

    @property
    def is_narrow(self) -> bool:
        """Whether there are groups, of fewer channels than a multiply-accumulate unit takes."""
        return self.groups > 1 and self.channels < CHANNELS_IN

    @property
    def stride(self) -> int:
        """Input places between neighbouring outputs, in one dimension; 1 where it enlarges."""
        return self._ratio(self.field_in / max(1, self.field_out))

    @property
    def dilation(self) -> int:
        """Output places between neighbouring inputs: of a transposed convolution."""
        return self._ratio(self.field_out / max(1, self.field_in))

    def _ratio(self, places: float) -> int:
        return max(1, round(places ** (1 / max(1, self.dimensions))))


@dataclasses.dataclass(frozen=True)
class Pass:
    """One product over all tiles: ``images`` x ``field`` rows, ``channels`` x ``window`` inner.

    Attributes:
        images: how many images.
        field: results of an image, for each output channel.
        channels: input channels of a group.
        outputs: output channels of a group.
        window: places of the kernel.
        groups: of channels.
        stride: input places between neighbouring results.
        dilation: results between neighbouring inputs.
        spread: zeros stand between them.
        gathered: rows that share an input: of a weight's gradient, the places of the kernel.
        rearranged: elements of the larger operand, where operands lie in another order than the
            product wants.
        narrow: groups have fewer channels than a multiply-accumulate unit takes.
        dimensions: of a field.
    """

    images: int
    field: int
    channels: int
    outputs: int
    window: int = 1
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    spread: bool = False
    gathered: bool = False
    rearranged: int = 0
    narrow: bool = False
    dimensions: int = 2


def geometry(capture: Capture, operator: OperatorRecord) -> Geometry:
    """Return the sizes of a captured convolution (or its gradient) or matrix product."""
    if operator.is_matmul:
        result = capture.tensors[operator.outputs[0]].shape
        rows, columns = result[-2:]
        written = max(1, math.prod(result))
        inner = max(1, operator.macs // written)
        return Geometry(rows, math.prod(result[:-2]), inner, columns)
    backward = operator.name == "convolution_backward"
    # aten's order: image, weight; of the gradients: the result's gradient, image, weight.
    image, weight = (capture.tensors[i] for i in operator.inputs[int(backward) : int(backward) + 2])
    result = capture.tensors[operator.inputs[0] if backward else operator.outputs[0]].shape
    # A weight has the shape in which it was made, which is another where it was computed (Proxy
    # Norm's scale goes into grouped weights): the image and the result say how it is used.
    channels, size = max(1, operator.group_channels), math.prod(weight.shape)
    batched = len(image.shape) == len(result) > 2
    groups = max(1, image.shape[1] // channels) if batched else 1
    made = result[1] if batched else weight.shape[0]
    return Geometry(
        images=image.shape[0],
        groups=groups,
        channels=channels,
        outputs=max(1, made // groups),
        window=max(1, size // (channels * made)),
        field_in=math.prod(image.shape[2:]),
        field_out=math.prod(result[2:]),
        dimensions=max(1, len(image.shape) - 2),
    )


def forward_pass(sizes: Geometry) -> Pass:
    """Return the product of a convolution's forward pass."""
    return Pass(
        sizes.images,
        sizes.field_out,
        sizes.channels,
        sizes.outputs,
        sizes.window,
        sizes.groups,
        stride=sizes.stride,
        dilation=sizes.dilation,
        spread=sizes.dilation > 1,
        rearranged=_regrouped(sizes),
        narrow=sizes.is_narrow,
        dimensions=sizes.dimensions,
    )


def input_pass(sizes: Geometry) -> Pass:
    """Return the product of the gradient of a convolution's input.

    A stride is undone after the product where the kernel has one place (poplibs,
    ``ConvPlan.cpp:776``).
    """
    spread = sizes.window > 1 and sizes.stride > 1
    return Pass(
        sizes.images,
        sizes.field_in if sizes.window > 1 else sizes.field_out,
        sizes.outputs,
        sizes.channels,
        sizes.window,
        sizes.groups,
        stride=sizes.dilation,
        dilation=sizes.stride if spread else 1,
        spread=spread,
        rearranged=_regrouped(sizes),
        narrow=sizes.is_narrow,
        dimensions=sizes.dimensions,
    )


def weight_pass(sizes: Geometry) -> Pass:
    """Return the product of the gradient of a convolution's weight: a sum over images and places.

    Both operands are rearranged (``ConvModel.cpp:1371``).
    """
    read = sizes.field_in if sizes.window > 1 else min(sizes.field_in, sizes.field_out)
    larger = max(sizes.channels * read, sizes.outputs * sizes.field_out)
    return Pass(
        sizes.channels,
        sizes.window,
        sizes.images * sizes.field_out,
        sizes.outputs,
        groups=sizes.groups,
        gathered=True,
        rearranged=sizes.images * sizes.groups * larger,
        narrow=sizes.is_narrow,
        dimensions=sizes.dimensions,
    )


def _regrouped(sizes: Geometry) -> int:
    """Return the elements of the larger operand where channels lie in other groups than needed.

    Layers hand on groups of 16 channels, vertices for narrower groups take fewer
    (``ConvModel.cpp:1371``).
    """
    larger = max(sizes.channels * sizes.field_in, sizes.outputs * sizes.field_out)
    return sizes.images * sizes.groups * larger if sizes.is_narrow else 0


def passes(capture: Capture, operator: OperatorRecord) -> List[Pass]:
    """Return the products that an operator stands for."""
    if not operator.passes:
        return []
    sizes = geometry(capture, operator)
    if not operator.backward or operator.is_matmul:
        return [forward_pass(sizes)]
    if operator.passes > 1:
        return [input_pass(sizes), weight_pass(sizes)]
    made = {capture.tensors[index].role for index in operator.outputs}
    return [weight_pass(sizes) if "weight_gradient" in made else input_pass(sizes)]
