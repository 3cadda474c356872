"""Classes of tensors that a model makes itself, as snnTorch does of its states."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ipu_proxynorm.nested import tensors_in

_BASE = torch.Tensor.__mro__[1]


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    if cls is torch.Tensor or tensors_in((args, kwargs)):
        return _BASE.__new__(cls, *args, **kwargs)
    # What a mode of Python returns is a plain tensor already, which torch makes no other class of.
    with _disable_current_modes():
        return _BASE.__new__(cls, *args, **kwargs)


@contextlib.contextmanager
def on_the_host() -> Iterator[None]:
    """Let objects of the model's own classes be made meanwhile: they stay on the host."""
    if hasattr(torch, "_disable_dynamo"):
        # Torch imports it at the first operator that a mode sees; it reads torch.Tensor as that is.
        importlib.import_module("torch._dynamo")
    real = torch.Tensor.__dict__.get("__new__")
    torch.Tensor.__new__ = staticmethod(_new)  # type: ignore[assignment]
    try:
        yield
    finally:
        if real is None:
            del torch.Tensor.__new__
        else:
            torch.Tensor.__new__ = real  # type: ignore[assignment]
