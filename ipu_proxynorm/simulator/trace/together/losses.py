"""The loss of each micro-batch, of the losses of all images."""

from __future__ import annotations

from typing import Any, List

import torch

from ..consistency import Traced
from ..tape import Operation, Slot
from .values import STACKED, Values, aten

_NONE, _MEAN = 0, 1  # reductions
_FLOAT = torch.float32


def _is_plain(values: Values, scores: Any, target: Any, weight: Any, reduction: int) -> bool:
    """Tell whether a loss is one number of scores (N, classes), without weights of classes."""
    return (
        values.differs(scores)
        and values.differs(target)
        and weight is None
        and reduction != _NONE
        and len(values.shape(scores)) == 2
        and values.traced[scores].dtype == _FLOAT
    )


def _each_sum(values: Values, step: Operation, folded: Slot, images: int) -> Slot:
    """Return the sums over each micro-batch's images, (micro-batches,)."""
    sizes = [values.count, images]
    parted = values.emit(
        aten.reshape.default, [folded, sizes], step, Traced((values.count, images), _FLOAT)
    )
    made = Traced((values.count,), _FLOAT)
    return values.emit(aten.sum.dim_IntList, [parted, [1]], step, made)


def nll_loss(values: Values, step: Operation) -> bool:
    """``nll_loss_forward``: each image's, then each micro-batch's sum or mean."""
    scores, target, weight, reduction, ignored = step.args
    if not _is_plain(values, scores, target, weight, reduction):
        return False
    images = values.shape(scores)[0]
    every = Traced((values.count * images,), _FLOAT)
    labels = values.folded(target, step)
    losses = values.new_slot()
    args: List[Any] = [values.folded(scores, step), labels, None, _NONE, ignored]
    values.steps.append(
        Operation(step.function, args, {}, (losses, None), step.origin, makes={losses: every})
    )
    total = _each_sum(values, step, losses, images)
    known = Traced(every.shape, torch.bool)
    counts = values.emit(aten.ne.Scalar, [labels, ignored], step, known)
    counts = values.emit(aten._to_copy.default, [counts], step, every, {"dtype": _FLOAT})
    counts = _each_sum(values, step, counts, images)
    loss, weights = step.outputs
    if reduction == _MEAN:
        made = Traced((values.count,), _FLOAT)
        total = values.emit(aten.div.Tensor, [total, counts], step, made)
    values.set(loss, STACKED, total)
    if weights is not None:
        values.set(weights, STACKED, counts)
    return True


def nll_loss_backward(values: Values, step: Operation) -> bool:
    """Its gradient."""
    gradient, scores, target, weight, reduction, ignored, weights = step.args
    if not _is_plain(values, scores, target, weight, reduction) or not values.differs(weights):
        return False
    images = values.shape(scores)[0]
    each = Traced((values.count,), _FLOAT)
    if values.differs(gradient):
        share = values.stacked(gradient, step)
    else:
        share = values.emit(aten.expand.default, [gradient, [values.count]], step, each)
    if reduction == _MEAN:
        share = values.emit(aten.div.Tensor, [share, values.stacked(weights, step)], step, each)
    for function, sizes in (
        (aten.reshape.default, [values.count, 1]),
        (aten.expand.default, [values.count, images]),
        (aten.reshape.default, [values.count * images]),
    ):
        share = values.emit(function, [share, sizes], step, Traced(tuple(sizes), _FLOAT))
    one = values.emit(
        aten.scalar_tensor.default, [1.0], step, Traced((), _FLOAT), {"dtype": _FLOAT}
    )
    folded = [values.folded(slot, step) for slot in (scores, target)]
    values.call(step, [share, *folded, None, _NONE, ignored, one], {}, [0])
    return True
