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
        temporaries: factor on the temporaries of convolutions and products as they are planned.
        exchange_memory: factor on code where the exchange is optimised for memory.
        imbalance: bytes on the fullest tile over the mean.
    """

    live: float = 1.05
    program: float = 5e6
    code_product: float = 1.8e6
    code_other: float = 2e5
    code_call: float = 1.1e5
    temporaries: float = 1.0
    exchange_memory: float = 0.85
    imbalance: float = 1.1


@functools.lru_cache(maxsize=None)
def ensemble() -> Tuple[Parameters, ...]:
    """Return the calibrations shipped with the package, the most central one first."""
    if not os.path.exists(_FILE):
        return (Parameters(),)
    with open(_FILE) as file:
        return tuple(Parameters(**entry) for entry in json.load(file)["ensemble"])
