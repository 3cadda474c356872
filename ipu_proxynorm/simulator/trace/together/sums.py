"""Finds the tensors of which only the sum over the micro-batches is needed."""

from __future__ import annotations

from typing import Iterable, Set

from ..optimize.graph import Graph, is_named
from ..tape import Block, Operation, Slot, Step, makes, uses

# Linear in their first argument, all others being numbers.
_LINEAR = frozenset({
    "_to_copy", "_unsafe_view", "clone", "div.Scalar", "expand", "mean.dim", "mul.Scalar", "neg",
    "permute", "reshape", "select", "select_backward", "slice", "slice_backward", "squeeze",
    "squeeze.dim", "squeeze.dims", "sum", "sum.dim_IntList", "t", "transpose", "unsqueeze", "view",
})  # fmt: skip


def only_summed(
    block: Block, differing: Set[Slot], summed: Iterable[Slot], graph: Graph
) -> Set[Slot]:
    """Return the tensors that nothing reads but linear operators, on the way to a sum.

    Args:
        block: a micro-batch's operations.
        differing: tensors that differ between micro-batches.
        summed: results of which the sum over the micro-batches is wanted.
        graph: the graph of the block.

    """
    others = set(block.results) - set(summed)
    found: Set[Slot] = set()
    wanted = set(summed)
    for step in reversed(block.operations):
        for slot in makes(step):
            if slot not in differing or slot in others or graph.is_written(slot):
                continue
            readers = graph.read_by(slot)
            if (readers or slot in wanted) and all(
                is_linear(reader, slot, differing, found, graph) for reader in readers
            ):
                found.add(slot)
    return found


def is_linear(
    step: Step, slot: Slot, differing: Set[Slot], only_sums: Set[Slot], graph: Graph
) -> bool:
    """Tell whether a step can be given the sum of a tensor, and its results be sums.

    Args:
        step: reads the tensor.
        slot: the tensor.
        differing: tensors that differ between micro-batches.
        only_sums: known tensors of which only the sum is needed.
        graph: the graph of the block.

    """
    if not isinstance(step, Operation) or not set(makes(step)) <= only_sums:
        return False
    read = uses(step)
    if read == {slot} and is_named(step, *_linear_names()):
        return graph.is_float(slot) and all(map(graph.is_float, makes(step)))
    if is_named(step, "add.Tensor", "sub.Tensor"):
        return len(step.args) == 2 and read <= differing and set(map(type, step.args)) == {Slot}
    if is_named(step, "mul.Tensor"):
        one, other = step.args
        return (one in differing) != (other in differing) and graph.is_float(step.outputs)
    if is_named(step, "div.Tensor"):
        return step.args[0] == slot and step.args[1] not in differing and not step.kwargs
    if is_named(step, "mm.default"):
        return len(read & differing) == 1
    if is_named(step, "cat.default"):
        return all(value in differing or is_zero(value, graph) for value in step.args[0])
    if is_named(step, "masked_fill.Scalar"):
        return step.args[0] == slot and step.args[1] not in differing and step.args[2] == 0
    if is_named(step, "where.self"):
        return step.args[0] not in differing and all(
            value in differing or is_zero(value, graph) for value in step.args[1:]
        )
    return False


def is_zero(slot: Slot, graph: Graph) -> bool:
    """Tell whether a tensor is 0 everywhere, made so by the program."""
    step = graph.made_by(slot)
    if step is None or graph.is_written(slot):
        return False
    if is_named(step, "zeros.default", "zeros_like.default", "new_zeros.default"):
        return True
    return is_named(step, "scalar_tensor.default") and step.args[0] == 0


def _linear_names() -> Iterable[str]:
    for name in _LINEAR:
        yield name if "." in name else f"{name}.default"
    yield from ("transpose.int", "select.int", "slice.Tensor")
