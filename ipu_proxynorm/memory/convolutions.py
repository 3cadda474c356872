"""Memory that convolutions and matrix products need while they run, besides their tensors."""

from __future__ import annotations

from typing import Any, Union

import numpy as np

from ipu_proxynorm.memory.calibration import Parameters

# Input channels that the convolution unit of a tile takes at once in float16: groups of fewer are
# padded or rearranged.
_UNIT_CHANNELS = 16

Array = Union[float, "np.ndarray[Any, Any]"]


def temporaries(
    macs: Array,
    elements: Array,
    group_channels: Array,
    element_bytes: int,
    half_partials: bool,
    bound: Array,
    parameters: Parameters,
) -> Array:
    """Return the temporaries of convolutions (partial sums, rearranged inputs), bytes.

    A part grows less than proportionally with the multiply-adds (partials: a larger convolution is
    cut into more serial steps), a part with the elements that are rearranged, more where a group
    has fewer channels than the convolution unit takes. The available memory proportion bounds the
    sum on the fullest tile; where not even the rearranged elements fit, the planner goes on without
    a bound and takes what it needs least.

    Source of the form: the Poplar compiler's figures for 78 single convolutions
    (graphcore/poplibs, tests/benchmark_results.csv); of the bound: poplibs, ``ConvPlan.cpp``.

    Args:
        macs: multiply-adds of one pass.
        elements: the number of elements of input and output together.
        group_channels: input channels of each group.
        element_bytes: of the data: 2, or 4, whose copies and partial sums take twice as much.
        half_partials: partial sums in float16; of float16 data only.
        bound: bytes that the available memory proportion allows.
        parameters: the calibration.
    """
    products = parameters.temporaries_macs * (np.asarray(macs) / 1e8) ** (
        parameters.temporaries_exponent
    )
    if half_partials and element_bytes == 2:
        products = products * parameters.half_partials
    wider = element_bytes / 2  # the calibration is of float16
    channels = np.clip(group_channels, 1, _UNIT_CHANNELS)
    padded = 1 - np.log(channels) / np.log(_UNIT_CHANNELS)
    extra = parameters.temporaries_depthwise - parameters.temporaries_elements
    rearranged = (parameters.temporaries_elements + padded * extra) * np.asarray(elements)
    allowed = np.minimum(
        wider * (products + rearranged), parameters.temporaries_bound * np.asarray(bound)
    )
    return np.maximum(allowed, wider * rearranged)


def single_convolution(
    macs: Array, elements: Array, group_channels: Array, bound: Array, parameters: Parameters
) -> Array:
    """Return what a program of one convolution takes beside its tensors, forward and backward.

    Three passes, each with its code; their temporaries take turns.
    """
    return (
        parameters.program
        + 3 * parameters.code_product
        + temporaries(macs, elements, group_channels, 2, False, bound, parameters)
    )
