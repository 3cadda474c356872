"""Finding the one loss that a traced model is trained on."""

from __future__ import annotations

from typing import List, NamedTuple

import torch

from .. import poptorch_core
from .origins import Origin
from .recorder import Recorder
from .tape import Slot, depends_on


class Loss(NamedTuple):
    """A tensor that a loss function, or ``identity_loss``, has returned."""

    slot: Slot
    tensor: torch.Tensor
    origin: Origin


def final_loss(recorder: Recorder, losses: List[Loss], forward: str) -> torch.Tensor:
    """Return the loss that no other loss is computed from.

    Args:
        recorder: holds the forward pass.
        losses: all losses of the model.
        forward: where the model is defined, ``file:line``.

    Raises:
        poptorch.Error: there is no loss, or more than one that feeds no other.

    """
    unique = {loss.slot: loss for loss in losses}
    if not unique:
        error = poptorch_core.createError(
            "Couldn't find a loss in graph! Compute one with a torch loss function, or wrap what "
            "is to be minimised in poptorch.identity_loss.",
            layer="poptorch_cpp_error",
        )
        error.add_location(forward)
        raise error
    final = [
        slot for slot in unique if not depends_on(recorder.block, {slot}, set(unique) - {slot})
    ]
    if len(final) != 1:
        error = poptorch_core.createError(
            "Multiple independent losses found in graph. Graph must have one final loss. "
            "Wrap final graph loss in poptorch.identity_loss.",
            layer="poptorch_cpp_error",
        )
        error.add_location(", ".join(unique[slot].origin.location for slot in final))
        raise error
    return unique[final[0]].tensor
