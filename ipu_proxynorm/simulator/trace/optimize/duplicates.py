"""Leaves out operations that copy, or compute again, what exists already."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Tuple

from ..tape import Block, Operation, Slot, Step, makes, uses
from .graph import Graph, is_named, is_pure, is_shared, with_arguments

# x + 0, x - 0, x * 1, x / 1 and x ** 1, which the closed forms of moments and autograd leave.
_NEUTRAL = {
    0.0: ("add.Tensor", "sub.Tensor"),
    1.0: ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar", "pow.Tensor_Scalar"),
}


def without_duplicates(block: Block, held: Iterable[Slot]) -> Block:
    """Return the block without copies that nobody needs and without what is computed twice.

    Bit for bit the same, but for -0 + 0, which stays -0.
    """
    graph = Graph(block, held)
    instead: Dict[Slot, Slot] = {}
    known: Dict[Any, Operation] = {}
    steps: List[Step] = []
    for step in block.operations:
        if not isinstance(step, Operation):
            # Its blocks read the tensors by their own names.
            if not uses(step) & set(instead):
                steps.append(step)
                continue
            return block
        step = with_arguments(step, instead)
        if is_pure(step) and not is_shared(step, graph):
            source = _same_tensor(step, graph)
            if source is not None:
                instead[step.outputs] = source
                continue
            key = _key(step)
            if key is not None:
                if key in known:
                    instead.update(zip(makes(step), makes(known[key])))
                    continue
                known[key] = step
        steps.append(step)
    return Block(steps, list(block.results))


def _same_tensor(step: Operation, graph: Graph) -> Any:
    """Return the tensor that an operation's only result equals, None if it does not."""
    source = step.args[0] if step.args else None
    if not isinstance(source, Slot) or not isinstance(step.outputs, Slot):
        return None
    if not graph.same_kind(source, step.outputs) or not graph.owns_memory(source):
        return None
    if is_named(step, "clone.default", "_to_copy.default", "alias.default"):
        return source if not step.kwargs.get("memory_format") else None
    if len(step.args) != 2 or step.kwargs or not graph.is_float(source):
        return None
    other = step.args[1]
    is_number = type(other) in (int, float)
    return source if is_number and is_named(step, *_NEUTRAL.get(float(other), ())) else None


def _key(step: Operation) -> Any:
    key = (step.function, _frozen(list(step.args)), _frozen(step.kwargs))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(tree: Any) -> Any:
    """Return nested arguments as something to compare, numbers with their types."""
    if isinstance(tree, Slot):
        return tree
    if isinstance(tree, (list, tuple)):
        return tuple(_frozen(element) for element in tree)
    if isinstance(tree, dict):
        frozen: Tuple[Any, ...] = tuple(sorted((k, _frozen(v)) for k, v in tree.items()))
        return frozen
    return (type(tree), repr(tree)) if isinstance(tree, float) else (type(tree), tree)
