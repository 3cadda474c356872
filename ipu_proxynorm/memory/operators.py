"""PopTorch's own operators as torch's, for a trace outside of a compilation.

On the meta device PopTorch registers them without a derivative, and some act on the graph that is
being compiled (``dispatch_tracer/RegisterMetaOps.cpp.inc:511-537``): a trace through them would
have no backward pass. What they do to values and gradients is what stands here in their place.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator

import torch
from torch import Tensor


def _same(tensor: Tensor, *settings: Any) -> Tensor:
    return tensor


def _nothing(*settings: Any) -> None:
    return None


def _identity_loss(loss: Tensor, reduction: int) -> Tensor:
    """Reduce a loss; the numbers are those of ``poptorch.identity_loss`` (ops.py:1041)."""
    if reduction == 0:
        return loss.sum()
    return loss.mean() if reduction == 1 else loss.clone()


#: By the names that PopTorch's ``python/ops.py`` calls them by, in ``torch.ops.poptorch``.
_REPLACEMENTS: Dict[str, Callable[..., Any]] = {
    "identity_loss": _identity_loss,
    "recomputation_checkpoint": _same,
    "nop": _same,
    "ipu_print_tensor": _same,
    "set_available_memory": _same,
    "set_matmul_serialization": _same,
    "set_overlap_for_input": _same,
    "set_overlap_for_output": _same,
    "begin_multi_conv": _nothing,
    "end_multi_conv": _nothing,
    "push_name_scope": _nothing,
    "pop_name_scope": _nothing,
    "set_attribute": _nothing,
    "clear_attribute": _nothing,
}


@contextlib.contextmanager
def torch_operators() -> Iterator[None]:
    """Let PopTorch's functions compute with torch's operators meanwhile.

    Its simulator's do always; there is nothing to replace then.
    """
    namespace: Any = torch.ops.poptorch
    own = {name: getattr(namespace, name, None) for name in _REPLACEMENTS}
    present = {name: operator for name, operator in own.items() if operator is not None}
    for name in present:
        setattr(namespace, name, _REPLACEMENTS[name])
    try:
        yield
    finally:
        for name, operator in present.items():
            setattr(namespace, name, operator)
