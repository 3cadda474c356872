"""Synthetic data: what a device computes on when host input and output are switched off."""

from __future__ import annotations

from typing import Any, List, Mapping, Sequence

import torch
from torch import Tensor

# PopART's SyntheticDataMode.
_OFF, _ZEROS, _RANDOM_NORMAL = 0, 1, 2


def isEnabled(popart_options: Mapping[str, Any]) -> bool:
    """Tell whether the options switch host input and output off."""
    return popart_options.get("syntheticDataMode", _OFF) != _OFF


def inputsInstead(popart_options: Mapping[str, Any], inputs: Sequence[Tensor]) -> List[Tensor]:
    """Return what stands in for the inputs: zeros, or standard normal numbers of their types."""
    if popart_options.get("syntheticDataMode", _OFF) == _ZEROS:
        return [torch.zeros_like(tensor) for tensor in inputs]
    return [torch.randn(tensor.shape, device=tensor.device).to(tensor.dtype) for tensor in inputs]
