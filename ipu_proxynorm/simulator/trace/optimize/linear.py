"""Lets signs and factors act on few numbers instead of many: behind sums, before expansions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Iterable, Iterator, List

from ..tape import Block, Operation, Slot, Step, makes, uses
from .graph import Graph, is_named, is_pure

_SUMS = ("sum.default", "sum.dim_IntList")
_NEGATION = "neg.default"
# Elementwise, of one tensor and numbers.
_BY_NUMBERS = ("div.Scalar", "div.Tensor", "mul.Scalar", "mul.Tensor", "neg.default")
# What takes expanded tensors as they are.
_BROADCASTING = ("add.Tensor", "mul.Tensor", "sub.Tensor")


def moved_to_few(block: Block, held: Iterable[Slot], new_slot: Callable[[], Slot]) -> Block:
    """Return the block with -sum(x) where sum(-x) was, and expand(x / n) where expand(x) / n was.

    The latter of each are what gradients of differences and of means leave. Bit for bit the same,
    but for the sign of zeros.

    Args:
        block: operations.
        held: arguments and constants.
        new_slot: gives numbers to new tensors.

    """
    graph = Graph(block, held)
    steps: List[Step] = []
    for step in block.operations:
        found: Iterator[Operation] = iter(())
        if isinstance(step, Operation) and is_pure(step) and not _changes(graph, step):
            source = _source(graph, step)
            if is_named(step, *_SUMS) and is_named(source, _NEGATION):
                found = _negated(graph, step, source, new_slot())
            elif is_named(step, *_BY_NUMBERS) and is_named(source, "expand.default"):
                found = _before(graph, step, source, new_slot)
        steps += list(found) or [step]
    return Block(steps, list(block.results))


def _changes(graph: Graph, step: Operation) -> bool:
    """Tell whether the program writes to what an operation reads or makes."""
    return any(graph.is_written(slot) for slot in (*uses(step), *makes(step)))


def _source(graph: Graph, step: Operation) -> Any:
    """Return what makes an operation's first argument, where it and its argument do not change."""
    source = graph.made_by(step.args[0]) if step.args else None
    if source is None or not is_pure(source) or _changes(graph, source):
        return None
    return source


def _negated(graph: Graph, step: Operation, source: Any, total: Slot) -> Iterator[Operation]:
    """Yield the sum of what is negated, and its negation."""
    x = source.args[0]
    if not (graph.is_float(x) and graph.is_float(step.outputs)):
        return
    made = graph.traced[total] = graph.traced[step.outputs]
    reads = {x: graph.traced[x]}
    yield replace(step, args=[x, *step.args[1:]], outputs=total, reads=reads, makes={total: made})
    yield replace(source, args=[total], outputs=step.outputs, reads={total: made}, makes=step.makes)


def _before(
    graph: Graph, step: Operation, source: Any, new_slot: Callable[[], Slot]
) -> Iterator[Operation]:
    """Yield an operator by numbers on what is expanded, and the expansion of that."""
    x, size = source.args[:2]
    numbers = all(type(argument) in (int, float) for argument in step.args[1:])
    readers = graph.read_by(step.outputs)
    if not (
        numbers
        and not step.kwargs
        and graph.is_float(x)
        and graph.same_kind(source.outputs, step.outputs)
        and not graph.is_returned(step.outputs)
        and all(is_named(reader, *_BROADCASTING) for reader in readers)
    ):
        return
    few = new_slot()
    made = graph.traced[few] = graph.traced[x]
    yield replace(step, args=[x, *step.args[1:]], outputs=few, reads={x: made}, makes={few: made})
    yield replace(
        source, args=[few, size], outputs=step.outputs, reads={few: made}, makes=step.makes
    )
