"""Keeps the host's autocast from the device's tensors, which it leaves as they are.

Source: torch 2.0.1 ``aten/src/ATen/autocast_mode.h``, ``is_autocast_eligible``: autocast of the CPU
casts tensors of the CPU alone. Here the device's tensors are of the CPU.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, ContextManager

import torch

_of_a_device: Callable[..., bool] = torch.is_autocast_enabled  # torch 2.0's takes no argument
_is_enabled: Callable[[], bool] = functools.partial(_of_a_device, "cpu")
try:
    _is_enabled()
except TypeError:  # torch 2.0 has a function for each kind of device
    _is_enabled = torch.is_autocast_cpu_enabled


def without_autocast() -> ContextManager[Any]:
    """Return a context in which the CPU's operators do not cast."""
    if _is_enabled():
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()
