"""Comparison of results."""

from __future__ import annotations

from typing import Any

import torch


def allclose(ref: Any, other: Any) -> bool:
    """Tell whether two nested structures are alike and their tensors close."""
    if isinstance(ref, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.allclose(other, ref)
    for kind in (tuple, list):
        if isinstance(ref, kind):
            return (
                isinstance(other, kind)
                and len(ref) == len(other)
                and all(allclose(a, b) for a, b in zip(ref, other))
            )
    raise TypeError(f"Cannot compare {type(ref)}: expected tensors in lists and tuples.")
