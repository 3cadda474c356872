"""How convolutions, matrix products and norms take the tensors of several micro-batches."""

from __future__ import annotations

from typing import Any, List

from ..consistency import Traced
from ..tape import Operation, makes
from .values import STACKED, SUMMED, Values, aten


def convolution(values: Values, step: Operation) -> bool:
    """A convolution by the same weights in all micro-batches."""
    if any(values.differs(slot) for slot in step.args[1:3]):
        return False
    if len(values.shape(step.args[0])) != len(values.shape(step.args[1])):
        return False
    values.call(step, [values.folded(step.args[0], step), *step.args[1:]], {}, [0])
    return True


def convolution_backward(values: Values, step: Operation) -> bool:
    """Its gradients: of the input folded, of the weights summed where that will do."""
    grad, x, weight = step.args[:3]
    if values.differs(weight) or len(values.shape(x)) != len(values.shape(weight)):
        return False
    if not (values.differs(grad) and values.differs(x)):
        return False
    return _with_sums(values, step, [values.folded(grad, step), values.folded(x, step)])


def _with_sums(values: Values, step: Operation, first: List[Any]) -> bool:
    """Call an operator whose first result is a gradient of folded input, others sums of images."""
    input_, *sums = step.outputs
    wanted = [slot for slot in sums if slot is not None]
    if not all(slot in values.only_sums for slot in wanted):
        return False
    forms = [0] * (input_ is not None) + [SUMMED] * len(wanted)
    values.call(step, [*first, *step.args[len(first) :]], {}, forms)  # type: ignore[arg-type]
    return True


def group_norm(values: Values, step: Operation) -> bool:
    """``native_group_norm``, whose statistics are an image's."""
    x, weight, bias, n, *rest = step.args
    if values.differs(weight) or values.differs(bias):
        return False
    args = [values.folded(x, step), weight, bias, values.count * n, *rest]
    values.call(step, args, {}, [0] * len(makes(step)))
    return True


def group_norm_backward(values: Values, step: Operation) -> bool:
    """Its gradients."""
    grad, x, mean, rstd, weight, n = step.args[:6]
    if values.differs(weight) or not all(map(values.differs, (grad, x, mean, rstd))):
        return False
    first = [values.folded(slot, step) for slot in (grad, x, mean, rstd)]
    return _with_sums(values, step, [*first, weight, values.count * n])


def layer_norm(values: Values, step: Operation) -> bool:
    """``native_layer_norm`` over dimensions behind the first."""
    x, shape, weight, bias, *_ = step.args
    if values.differs(weight) or values.differs(bias) or len(shape) >= len(values.shape(x)):
        return False
    args = [values.folded(x, step), *step.args[1:]]
    values.call(step, args, {}, [0] * len(makes(step)))
    return True


def layer_norm_backward(values: Values, step: Operation) -> bool:
    """Its gradients."""
    grad, x, shape, mean, rstd, weight = step.args[:6]
    if values.differs(weight) or not all(map(values.differs, (grad, x, mean, rstd))):
        return False
    if len(shape) >= len(values.shape(x)):
        return False
    folded = [values.folded(slot, step) for slot in (grad, x, mean, rstd)]
    return _with_sums(values, step, [folded[0], folded[1], shape, folded[2], folded[3]])


def batch_norm_inference(values: Values, step: Operation) -> bool:
    """Batch Norm by running statistics."""
    names = [argument.name for argument in step.function._schema.arguments]  # type: ignore
    training = step.args[names.index("training")] if "training" in names else False
    if training or any(values.differs(slot) for slot in step.args[1:5]):
        return False
    made = makes(step)
    # The saved statistics are empty.
    forms = [0, *[SUMMED] * (len(made) - 1)]
    values.call(step, [values.folded(step.args[0], step), *step.args[1:]], {}, forms)  # type: ignore
    return True


def matrix_product(values: Values, step: Operation) -> bool:
    """``mm``: by the same matrix, or a sum over the images of all micro-batches."""
    one, other = step.args
    if not values.differs(other):
        values.call(step, [values.folded(one, step), other], {}, [0])
        return True
    if not values.differs(one):
        values.call(step, [one, values.folded(other, step, 1)], {}, [1])
        return True
    if step.outputs in values.only_sums:
        args = [values.folded(one, step, 1), values.folded(other, step)]
        values.call(step, args, {}, [SUMMED])
        return True
    made = Traced(values.form_shape(step.outputs, STACKED), values.traced[step.outputs].dtype)
    args = [values.stacked(one, step), values.stacked(other, step)]
    values.set(step.outputs, STACKED, values.emit(aten.bmm.default, args, step, made))
    return True


def affine(values: Values, step: Operation) -> bool:
    """``addmm`` by the same matrix and bias."""
    bias, one, other = step.args[:3]
    if values.differs(bias) or values.differs(other) or len(values.shape(bias)) != 1:
        return False
    args = [bias, values.folded(one, step), other]
    values.call(step, args, step.kwargs, [0])
    return True


def batched_product(values: Values, step: Operation) -> bool:
    """``bmm`` of two that differ."""
    if not all(map(values.differs, step.args)):
        return False
    values.call(step, [values.folded(slot, step) for slot in step.args], {}, [0])
    return True
