"""Rows of the table: pooling, padding and resizing."""

from __future__ import annotations

import math

from .refusal import Call, Refusal, sizes

_POOLING = "popart_canonicalization/PoolingOps.cpp"
_RESHAPE = "popart_canonicalization/ReshapeOps.cpp"


def _without_stride(call: Call) -> bool:
    return not list(sizes(call["stride"]))


def _uneven(call: Call) -> bool:
    wanted = list(sizes(call["output_size"]))
    shape = call.input.shape
    spatial = shape[len(shape) - len(wanted) :]
    if len(wanted) == 1 and call.name[-2] in "123":  # one number stands for every dimension
        spatial = shape[len(shape) - int(call.name[-2]) :]
        wanted = wanted * len(spatial)
    return any(size is not None and have % size for have, size in zip(spatial, wanted))


def _scales(call: Call) -> list:
    """Return the factors by which height and width grow."""
    return [size / have for size, have in zip(call["output_size"], call.input.shape[2:])]


ROWS = [
    Refusal(
        "max-pool-dilation",
        "Max pooling with dilation",
        lambda call: any(size != 1 for size in sizes(call["dilation"])),
        "popart/op/maxpool.cpp:202",
        "leave dilation at 1",
        functions="max_pool1d max_pool2d max_pool3d",
        operators="max_pool2d_with_indices",
    ),
    Refusal(
        "pool-stride",
        "Pooling without a stride",
        _without_stride,
        f"{_POOLING}:37, popart/op/maxpool.cpp:47, "
        "popart/op/averagepool.cpp:41, dispatch_tracer/RegisterMetaOps.cpp.inc:223",
        "give the kernel's size as the stride, as nn.MaxPool2d and nn.AvgPool2d do",
        functions="max_pool1d max_pool2d max_pool3d avg_pool2d avg_pool3d",
        operators="max_pool2d_with_indices avg_pool2d avg_pool3d",
    ),
    Refusal(
        "max-pool3d-indices",
        "max_pool3d with return_indices",
        lambda call: True,
        "dispatch_tracer/TypeInferenceHandler.cpp:33",
        "leave return_indices at False",
        functions="max_pool3d_with_indices",
    ),
    Refusal(
        "adaptive-pool-uneven",
        "Adaptive average pooling to a size that does not divide the input's",
        _uneven,
        f"{_POOLING}:142",
        "choose an output size that divides the input's, or resize first",
        functions="adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        operators="_adaptive_avg_pool2d _adaptive_avg_pool3d",
    ),
    Refusal(
        "bicubic-corners",
        "Bicubic interpolation with align_corners",
        lambda call: bool(call["align_corners"]),
        f"{_RESHAPE}:843",
        "use align_corners=False",
        operators="upsample_bicubic2d",
    ),
    Refusal(
        "bilinear-uneven",
        "Bilinear interpolation by different factors for height and width",
        lambda call: not math.isclose(*_scales(call), rel_tol=1e-3),
        f"{_RESHAPE}:932",
        "resize by one factor and crop, or use mode='nearest'",
        operators="upsample_bilinear2d",
    ),
    Refusal(
        "linear-interpolation",
        "Linear interpolation of three dimensions, Unsupported upsample mode "
        "aten::upsample_linear1d: currently only 'nearest' is supported, which",
        lambda call: True,
        f"{_RESHAPE}:959",
        "use mode='nearest'",
        operators="upsample_linear1d",
    ),
    Refusal(
        "trilinear-interpolation",
        "Linear interpolation of five dimensions, Unsupported upsample mode "
        "aten::upsample_trilinear3d: currently only 'nearest' is supported, which",
        lambda call: True,
        f"{_RESHAPE}:959",
        "use mode='nearest'",
        operators="upsample_trilinear3d",
    ),
    Refusal(
        "unfold-unbatched",
        "unfold (im2col) of an input without a batch dimension",
        lambda call: call.input.dim() != 4,
        f"{_RESHAPE}:391",
        "unsqueeze(0) the input and squeeze the result",
        operators="im2col",
    ),
    Refusal(
        "pad-gradient",
        "The gradient of padding by reflection or replication",
        lambda call: call.training and call.input.requires_grad,
        "popart/op/pad.cpp:118",
        "pad with constants, or concatenate slices that are flipped or expanded",
        operators="reflection_pad1d reflection_pad2d "
        "replication_pad1d replication_pad2d replication_pad3d",
    ),
]
