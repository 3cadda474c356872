"""The model's free parameters: what published figures fix, and an ensemble of what they allow."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from typing import Tuple

_FILE = os.path.join(os.path.dirname(__file__), "data", "calibration.json")


@dataclasses.dataclass(frozen=True)
class Parameters:
    """One calibration.

    Attributes:
        live: bytes that activations and gradients take for each byte of their tensors.
        program: always-live bytes of any program: seeds, supervisor, control.
        code_product: code of each distinct convolution or matrix product, bytes a pass.
        code_other: code of each distinct other operator that has all tiles work, bytes.
        code_call: control code and vertex state of each operator that has all tiles work, bytes.
        temporaries_macs: temporaries of a convolution of 10^8 multiply-adds, bytes.
        temporaries_exponent: how that part grows with the multiply-adds.
        temporaries_elements: temporaries for each element of a convolution's input and output.
        temporaries_depthwise: the same where each channel is a group of its own.
        temporaries_bound: mean over the tiles of what the available memory proportion allows one.
        half_partials: factor on the part of the multiply-adds with float16 partials.
        exchange_memory: factor on code where the exchange is optimised for memory.
        imbalance: bytes on the fullest tile over the mean.
    """

    live: float = 1.05
    program: float = 5e6
    code_product: float = 1.8e6
    code_other: float = 2e5
    code_call: float = 1.1e5
    temporaries_macs: float = 1.8e7
    temporaries_exponent: float = 0.6
    temporaries_elements: float = 1.5
    temporaries_depthwise: float = 5.0
    temporaries_bound: float = 0.85
    half_partials: float = 0.7
    exchange_memory: float = 0.85
    imbalance: float = 1.1


@functools.lru_cache(maxsize=None)
def ensemble() -> Tuple[Parameters, ...]:
    """Return the calibrations shipped with the package, the most central one first."""
    if not os.path.exists(_FILE):
        return (Parameters(),)
    with open(_FILE) as file:
        return tuple(Parameters(**entry) for entry in json.load(file)["ensemble"])
