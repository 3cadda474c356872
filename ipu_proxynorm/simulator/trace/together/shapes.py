"""How views, reductions and other operators of whole dimensions take several micro-batches."""

from __future__ import annotations

from ..consistency import Traced
from ..tape import Operation, makes
from .arguments import Rule, normal, replaced_in, tensors_of
from .elementwise import aligned
from .values import STACKED, SUMMED, Values, aten


def reshaped(values: Values, step: Operation) -> bool:
    """``view`` and its like: micro-batches stay the slowest of what the first dimension counts."""
    source, shape = step.args[0], values.shape(step.outputs)
    if values.has(source, 0) and shape:
        sizes = list(values.form_shape(step.outputs, 0))
        new, form = values.folded(source, step), 0
    else:
        sizes = [values.count, *shape]
        new, form = values.stacked(source, step), STACKED  # type: ignore[assignment]
    made = Traced(tuple(sizes), values.traced[step.outputs].dtype)
    result = values.emit(aten.reshape.default, [new, sizes], step, made)
    values.set(step.outputs, form, result)
    return True


def expanded(values: Values, step: Operation) -> bool:
    """``expand``: in the first dimension only where that stays."""
    source, shape, own = step.args[0], values.shape(step.outputs), values.shape(step.args[0])
    if len(own) == len(shape) and shape and own[0] == shape[0]:
        sizes = list(values.form_shape(step.outputs, 0))
        values.call(step, [values.folded(source, step), sizes], {}, [0])
        return True
    sizes = [values.count, *shape]
    values.call(step, [aligned(values, source, step, len(shape)), sizes], {}, [STACKED])
    return True


def transposed(values: Values, step: Operation) -> bool:
    """Exchanges of dimensions, along with the one that micro-batches are folded in."""
    source, name = step.args[0], step.name
    rank = len(values.shape(source))
    if name == "t":
        order = list(range(rank))[::-1]
    elif name == "transpose":
        one, other = normal(list(step.args[1:3]), rank)
        order = list(range(rank))
        order[one], order[other] = other, one
    else:
        order = normal(step.args[1], rank)
    if rank < 2:
        return False
    dim = 0 if values.has(source, 0) else next((d for d in range(rank) if values.has(source, d)), 0)
    made = order.index(dim)
    form_shape = values.form_shape(step.outputs, made)
    result = values.emit(
        aten.permute.default,
        [values.folded(source, step, dim), order],
        step,
        Traced(form_shape, values.traced[step.outputs].dtype),
    )
    values.set(step.outputs, made, result)
    return True


def along(position: int) -> Rule:
    """Operators along dimensions that are their argument at a position.

    Folded where the first dimension is not among them, stacked with the others shifted where it is.

    Args:
        position: which of the arguments holds the dimensions.

    """

    def rule(values: Values, step: Operation) -> bool:
        source = step.args[0]
        rank = len(values.shape(source))
        given = step.args[position] if position < len(step.args) else None
        if not rank or (given is None and step.name in ("argmax", "argmin")):
            return False
        dims = normal(given, rank)
        tensors = [s for s in tensors_of(step) if values.differs(s)]
        if any(not values.differs(s) for s in tensors_of(step)):
            return False
        outputs = makes(step)
        if any(len(values.shape(s)) != rank for s in tensors):
            return False
        if 0 not in dims and all(values.shape(s)[0] == values.shape(source)[0] for s in tensors):
            instead = {s: values.folded(s, step) for s in tensors}
            values.call(step, replaced_in(step, instead), step.kwargs, [0] * len(outputs))
            return True
        instead = {s: values.stacked(s, step) for s in tensors}
        args = replaced_in(step, instead)
        shifted = [dim + 1 for dim in dims]
        while len(args) <= position:
            args.append(None)
        args[position] = (
            shifted if isinstance(given, (list, tuple)) or given is None else shifted[0]
        )
        values.call(step, args, step.kwargs, [STACKED] * len(outputs))
        return True

    return rule


def unsqueezed(values: Values, step: Operation) -> bool:
    """``unsqueeze``."""
    source, dim = step.args
    rank = len(values.shape(source))
    dim = dim % (rank + 1)
    if dim and values.has(source, 0):
        values.call(step, [values.folded(source, step), dim], {}, [0])
    else:
        values.call(step, [values.stacked(source, step), dim + 1], {}, [STACKED])
    return True


def picked(values: Values, step: Operation) -> bool:
    """``select`` and ``slice``: along the first dimension of the stacked tensor's own."""
    source, dim, *rest = step.args if len(step.args) > 1 else (*step.args, 0)
    (dim,) = normal(dim, len(values.shape(source)))
    if dim and values.has(source, 0):
        values.call(step, [values.folded(source, step), dim, *rest], step.kwargs, [0])
    else:
        values.call(step, [values.stacked(source, step), dim + 1, *rest], step.kwargs, [STACKED])
    return True


def summation(values: Values, step: Operation) -> bool:
    """``sum.dim_IntList``: over the images of all micro-batches where only that is needed."""
    source = step.args[0]
    rank = len(values.shape(source))
    dims = normal(step.args[1], rank)
    if step.outputs in values.only_sums and rank:
        folded = next((d for d in dims if values.has(source, d)), 0 if 0 in dims else None)
        if folded is not None:
            args = [values.folded(source, step, folded), *step.args[1:]]
            values.call(step, args, step.kwargs, [SUMMED])
            return True
    return along(1)(values, step)


def reduced_all(values: Values, step: Operation) -> bool:
    """``sum`` and ``mean`` over everything: over all but the micro-batches."""
    source = step.args[0]
    rank = len(values.shape(source))
    if not rank or len(step.args) > 1:
        return False
    function = aten.sum.dim_IntList if step.name == "sum" else aten.mean.dim
    made = Traced((values.count,), values.traced[step.outputs].dtype)
    dims = list(range(1, rank + 1))
    args = [values.stacked(source, step), dims]
    new = values.emit(function, args, step, made, dict(step.kwargs))
    values.set(step.outputs, STACKED, new)
    return True


def rolled(values: Values, step: Operation) -> bool:
    """``roll`` along one dimension: within each micro-batch."""
    shifts, dims = step.args[1], step.args[2] if len(step.args) > 2 else []
    if len(shifts) != 1 or len(dims) != 1:
        return False
    (dim,) = normal(dims, len(values.shape(step.args[0])))
    values.call(step, [values.stacked(step.args[0], step), shifts, [dim + 1]], {}, [STACKED])
    return True


def concatenated(values: Values, step: Operation) -> bool:
    """``cat`` of tensors that all differ."""
    tensors, dim = step.args[0], step.args[1] if len(step.args) > 1 else 0
    if not all(map(values.differs, tensors)):
        return False
    ranks = {len(values.shape(slot)) for slot in tensors}
    if len(ranks) != 1:
        return False
    (dim,) = normal(dim, ranks.pop())
    if dim:
        new = [values.folded(slot, step) for slot in tensors]
        values.call(step, [new, dim], {}, [0])
    else:
        values.call(step, [[values.stacked(s, step) for s in tensors], 1], {}, [STACKED])
    return True


def padded(values: Values, step: Operation) -> bool:
    """Padding of dimensions behind the first."""
    source, padding = step.args[:2]
    if len(padding) >= 2 * len(values.shape(source)):
        return False
    values.call(step, [values.folded(source, step), *step.args[1:]], step.kwargs, [0])
    return True


def imagewise(values: Values, step: Operation) -> bool:
    """Pooling, resizing and their gradients, of tensors (N, C, *) that all differ."""
    tensors = tensors_of(step)
    outputs = makes(step)
    if not all(map(values.differs, tensors)):
        return False
    if any(len(values.shape(slot)) < 3 for slot in (*tensors, *outputs)):
        return False
    args = list(step.args)
    for position, argument in enumerate(step.function._schema.arguments):  # type: ignore
        if argument.name == "input_size" and position < len(args):
            args[position] = [values.count * args[position][0], *args[position][1:]]
    instead = {slot: values.folded(slot, step) for slot in tensors}
    whole = Operation(step.function, args, step.kwargs, step.outputs, step.origin)
    values.call(step, replaced_in(whole, instead), step.kwargs, [0] * len(outputs))
    return True
