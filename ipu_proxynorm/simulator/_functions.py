"""Sees the torch functions that a traced model calls: marks losses, adapts what torch refuses."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from . import _impl, _refusals
from ._recorder import Recorder

# The losses of torch that PopTorch takes as the model's loss without poptorch.identity_loss.
_LOSS_NAMES = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "cross_entropy_loss",
    "ctc_loss",
    "hinge_embedding_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "nll_loss2d",
    "nll_loss_nd",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
)
LOSSES = frozenset(
    getattr(module, name)
    for module in (F, torch, torch._C._nn)
    for name in _LOSS_NAMES
    if hasattr(module, name)
)

_HOST_READS = {
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.tolist: ".tolist()",
}


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    if num_classes < 1:
        raise _impl.createPoptorchError(
            "OneHot num classes must be specified and must be constant: the largest class in the "
            "tensor is not known when the model is compiled."
        )
    classes = torch.arange(num_classes, dtype=torch.int32)
    return (tensor.unsqueeze(-1) == classes).to(torch.int32)


# torch's own versions insist on 64-bit integers, or on looking at values.
_REPLACEMENTS = {F.one_hot: _one_hot}


class FunctionMode(TorchFunctionMode):
    """Passes every torch function on, having looked at it."""

    def __init__(self, recorder: Recorder, note_loss: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._recorder = recorder
        self._note_loss = note_loss

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _HOST_READS:
            raise _refusals.host_read(_HOST_READS[func], self._recorder.where())
        if func in LOSSES:
            loss = func(*args, **kwargs)  # what it calls inside is part of it
            self._note_loss(loss)
            return loss
        return _REPLACEMENTS.get(func, func)(*args, **kwargs)
