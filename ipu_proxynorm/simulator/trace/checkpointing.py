"""``torch.utils.checkpoint`` within a model: the function is called, and nothing is computed twice.

PopTorch differentiates the operators that ``forward`` has called, whatever torch's autograd keeps;
what is recomputed its compiler decides, by pipeline stage and ``recomputationCheckpoint``. Recorded
as torch does it, a second forward pass would draw other random numbers than the first.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Tuple

import torch
import torch.utils.checkpoint
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointFunction


def _called(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    return function(*args)


def _no_hooks(hooks: saved_tensors_hooks, *exception: Any) -> None:
    """Let autograd keep tensors as they are."""


def _on_host(*args: Any) -> str:
    return "cpu"


_MISSING = object()
_INSTEAD: Tuple[Tuple[Any, str, Any], ...] = (
    (CheckpointFunction, "apply", staticmethod(_called)),
    (saved_tensors_hooks, "__enter__", _no_hooks),
    (saved_tensors_hooks, "__exit__", _no_hooks),
    # Newer versions of torch look for a module of the tensors' device: torch.ipu.
    (torch.utils.checkpoint, "_infer_device_type", _on_host),
)


@contextlib.contextmanager
def without_recomputation() -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` call the function that it is given, meanwhile, and no more."""
    before = [vars(owner).get(name, _MISSING) for owner, name, _ in _INSTEAD]
    for owner, name, replacement in _INSTEAD:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(_INSTEAD, before):
            if value is _MISSING:  # inherited, or unknown to this version
                delattr(owner, name)
            else:
                setattr(owner, name, value)
