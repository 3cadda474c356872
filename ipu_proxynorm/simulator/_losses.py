"""Finding the one loss that a traced model is trained on."""

from __future__ import annotations

from typing import List, Tuple

import torch

from . import poptorch_core
from ._recorder import Recorder
from ._tape import Slot, depends_on


def final_loss(recorder: Recorder, losses: List[Tuple[Slot, torch.Tensor]]) -> torch.Tensor:
    """Return the loss that no other loss is computed from.

    Args:
        recorder: holds the forward pass.
        losses: every tensor that a loss function, or ``identity_loss``, returned.

    Raises:
        poptorch.Error: there is no loss, or more than one that feeds no other.

    """
    unique = dict(losses)
    if not unique:
        raise poptorch_core.createError(
            "Couldn't find a loss in graph! Compute one with a torch loss function, or wrap what "
            "is to be minimised in poptorch.identity_loss.",
            layer="poptorch_cpp_error",
        )
    final = [
        slot for slot in unique if not depends_on(recorder.block, {slot}, set(unique) - {slot})
    ]
    if len(final) != 1:
        raise poptorch_core.createError(
            "Multiple independent losses found in graph. Graph must have one final loss. "
            "Wrap final graph loss in poptorch.identity_loss.",
            layer="poptorch_cpp_error",
        )
    return unique[final[0]]
