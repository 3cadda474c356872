"""State that the whole package shares: whether a model is being traced for the device."""

from __future__ import annotations

from . import poptorch_core

_is_ipu_context = False
_dispatch_tracing = False


def createPoptorchError(msg: str) -> poptorch_core.Error:
    """Return the ``poptorch.Error`` that PopTorch's Python layer would raise."""
    return poptorch_core.createError(msg)


def isRunningOnIpu() -> bool:
    """Tell whether the calling code runs as part of a wrapped model."""
    return _is_ipu_context


def setIpuContext(val: bool) -> None:
    """Enter or leave the part of the program that belongs to the device."""
    global _is_ipu_context
    _is_ipu_context = val


def isDispatchTracing() -> bool:
    """Tell whether tensors need ``device="ipu"``: never here, as torch has no such device."""
    return _dispatch_tracing
