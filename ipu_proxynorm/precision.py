"""The precisions of a run: types of activations and of master weights.

Named as in Graphcore's example applications (``--precision``): bits of the activations, and of
their gradients, before the point, bits of the master weights behind it.
"""

from __future__ import annotations

import dataclasses
from typing import Dict

import torch
from torch import nn

from ipu_proxynorm.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Precision:
    """Types of the activations and of the master weights."""

    activations: torch.dtype
    weights: torch.dtype

    @property
    def note(self) -> str:
        """What to know of it, in a few words."""
        if self.activations == self.weights:
            return ""
        return "float16 activations, float32 weights"

    @property
    def weight_bytes(self) -> int:
        """Bytes of an element of a master weight."""
        return 2 if self.weights == torch.float16 else 4

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of an activation."""
        return 2 if self.activations == torch.float16 else 4


#: In 16.32 float16 activations meet float32 weights: PopTorch computes in the activations' type,
#: and keeps weights, their updates and the optimiser's state in float32.
PRECISIONS: Dict[str, Precision] = {
    "32.32": Precision(torch.float32, torch.float32),
    "16.32": Precision(torch.float16, torch.float32),
    "16.16": Precision(torch.float16, torch.float16),
}


def precision_of(name: str) -> Precision:
    """Return the precision of that name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRECISIONS:
        raise unknown_name("ipu.precision", name, list(PRECISIONS))
    return PRECISIONS[name]


def set_weights_type(model: nn.Module, precision: Precision) -> None:
    """Give the network's parameters and buffers, in place, the type of the master weights."""
    model.to(precision.weights)
