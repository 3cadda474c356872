"""What the rules of one weight update have in common.

A rule turns an optimiser's attributes into the scalars that PopART keeps on the device, creates the
state of one parameter, and updates one parameter in place, in two halves: ``updater`` gives the
tensor whose norm ``max_grad_norm`` limits, ``finish`` takes it, clipped or not. Names of scalars
and state are PopART's: they appear in ``ipu_param`` and ``ipu_state``. Source of the equations:
PopART's ``optimizer.hpp``, ``adam.hpp`` and ``adaptive.hpp``; of what is clipped:
``clipweightgradientsbynorm.cpp``, which runs when the optimisers have been decomposed.

Gradients come in summed or averaged as the options say, and still multiplied by the loss scaling;
``unscale`` undoes what automatic loss scaling multiplied them by on top of that. Parameters and
state come in as float32 (or float64); who calls rounds them to the types that they are stored in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

import torch
from torch import Tensor

# An attribute's value and whether it is compiled in as a constant.
ValueAndConst = Tuple[float, bool]
Values = Dict[str, ValueAndConst]
Scalars = Dict[str, float]
State = Dict[str, Tensor]


@dataclass(frozen=True)
class Factors:
    """How gradients are reduced.

    Attributes:
        accumulation: micro-batches for each update.
        replication: replicas, over all processes.
        mean: gradients are averaged rather than summed.
        post: the mean divides after summing, that is, within the optimiser's scalars.

    """

    accumulation: int = 1
    replication: int = 1
    mean: bool = True
    post: bool = True

    @property
    def divisor(self) -> float:
        """What the optimiser's scalars divide the summed gradient by."""
        return float(self.accumulation * self.replication) if self.mean and self.post else 1.0


def zeros(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return state of zeros, of the shape and the memory format of ``param``."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def derived(value: float, *sources: ValueAndConst) -> ValueAndConst:
    """Return a scalar, constant if everything that it is computed from is."""
    return value, all(const for _, const in sources)


@dataclass(frozen=True)
class MomentTypes:
    """Types of the gradient accumulator and of the first and second moments."""

    accum: torch.dtype = torch.float32
    first: torch.dtype = torch.float32
    second: torch.dtype = torch.float32

    def unscaledType(self) -> torch.dtype:
        """float16 gradients are cast up if both moments are float32."""
        both_float = self.first == self.second == torch.float32
        return torch.float32 if both_float else self.accum


def hasMomentum(values: Values) -> bool:
    """Momentum that is a constant 0 is left out of the program."""
    momentum, const = values["momentum"]
    return not const or momentum != 0.0
