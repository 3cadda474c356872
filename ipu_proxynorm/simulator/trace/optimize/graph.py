"""How the tensors of a block are related: which operations make, read, share and write them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
)

import torch

from .. import effects
from ..consistency import Traced
from ..tape import Block, Operation, Slot, Step, makes, slots_in, uses

_FLOATS = (torch.float32, torch.float64)


class Graph:
    """The tensors of a block.

    Args:
        block: operations; what is within branches and loops counts as read, written and shared.
        held: tensors that somebody else has as well: arguments, constants.

    """

    def __init__(self, block: Block, held: Iterable[Slot]) -> None:
        self.block = block
        self.maker: Dict[Slot, int] = {}
        self.readers: Dict[Slot, List[int]] = {}
        self._parents: Dict[Slot, Slot] = {}
        results = set(block.results)
        written: Set[Slot] = set()
        for position, step in enumerate(block.operations):
            for slot in uses(step):
                self.readers.setdefault(slot, []).append(position)
            for slot in makes(step):
                self.maker[slot] = position
            shared = _shared_by(step)
            for slot in shared:
                self._join(slot, shared[0])
            written.update(written_by(step))
        self._members: Dict[Slot, Set[Slot]] = {}
        for slot in {*self.maker, *self.readers, *held, *results}:
            self._members.setdefault(self._root(slot), set()).add(slot)
        self._written = {self._root(slot) for slot in written}
        self._held = {self._root(slot) for slot in held}
        self._results = {self._root(slot) for slot in results}

    @functools.cached_property
    def traced(self) -> Dict[Slot, Traced]:
        """What is known of shapes and types."""
        found: Dict[Slot, Traced] = {}
        for step in self.block.operations:
            if isinstance(step, Operation):
                found.update(step.reads)
                found.update(step.makes)
        return found

    def _root(self, slot: Slot) -> Slot:
        while slot in self._parents:
            slot = self._parents[slot]
        return slot

    def _join(self, one: Slot, other: Slot) -> None:
        one, other = self._root(one), self._root(other)
        if one != other:
            self._parents[one] = other

    def sharing(self, slot: Slot) -> Set[Slot]:
        """Return the tensors that may share a tensor's memory, itself included."""
        return self._members.get(self._root(slot), {slot})

    def owns_memory(self, slot: Slot) -> bool:
        """Tell whether an operation of the block made a tensor, dense, in memory of its own."""
        step = self.made_by(slot)
        return step is not None and not _shares(step)

    def is_written(self, slot: Slot) -> bool:
        """Tell whether the program writes to a tensor's memory anywhere."""
        return self._root(slot) in self._written

    def is_held(self, slot: Slot) -> bool:
        """Tell whether a tensor's memory is somebody else's."""
        return self._root(slot) in self._held

    def is_returned(self, slot: Slot) -> bool:
        """Tell whether a tensor's memory leaves the program."""
        return self._root(slot) in self._results

    def made_by(self, slot: Any) -> Optional[Operation]:
        """Return the operation that makes a tensor, if one of the block's does."""
        if not isinstance(slot, Slot) or slot not in self.maker:
            return None
        step = self.block.operations[self.maker[slot]]
        return step if isinstance(step, Operation) else None

    def read_by(self, slot: Slot) -> List[Step]:
        """Return the steps that read a tensor."""
        return [self.block.operations[position] for position in self.readers.get(slot, ())]

    def is_float(self, slot: Any) -> bool:
        """Tell whether a tensor is known to be of a type that the CPU computes in."""
        known = self.traced.get(slot) if isinstance(slot, Slot) else None
        return known is not None and known.dtype in _FLOATS

    def same_kind(self, one: Slot, other: Slot) -> bool:
        """Tell whether two tensors are known to be of one shape and type."""
        known = self.traced.get(one)
        return known is not None and known == self.traced.get(other)


class _Aliases(NamedTuple):
    """Whether an operator's results may share memory with its arguments, and with which."""

    in_results: bool
    arguments: Tuple[Tuple[int, str], ...]  # position and name


@functools.lru_cache(maxsize=None)
def _aliases(operator: Any) -> _Aliases:
    schema = operator._schema
    return _Aliases(
        any(value.alias_info is not None for value in schema.returns),
        tuple(
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None
        ),
    )


def _is_torchs(step: Step) -> bool:
    return isinstance(step, Operation) and getattr(step.function, "_schema", None) is not None


def _shares(step: Step) -> bool:
    """Tell whether what a step returns may share memory with what it reads."""
    if not isinstance(step, Operation):
        return True
    if not _is_torchs(step):
        return not getattr(step.function, "is_kernel", False)
    return _aliases(step.function).in_results


def _shared_by(step: Step) -> List[Slot]:
    """Return the tensors that may share memory after a step, those that it returns included."""
    if not _shares(step):
        return []
    if not isinstance(step, Operation) or not _is_torchs(step):
        return [*uses(step), *makes(step)]
    found: List[Slot] = []
    for position, name in _aliases(step.function).arguments:
        given = step.args[position] if position < len(step.args) else None
        found += slots_in(step.kwargs.get(name, given))
    return [*found, *makes(step)]


def written_by(step: Step) -> List[Slot]:
    """Return the tensors that a step writes to; all that it reads where it does not say."""
    if isinstance(step, Operation) and not step.keeps:
        return []
    if isinstance(step, Operation) and _is_torchs(step):
        return slots_in(effects.written_arguments(step.function, step.args, step.kwargs))
    return list(uses(step))


def is_pure(step: Step) -> bool:
    """Tell whether a step is an operator that depends on its arguments alone and writes nothing."""
    return isinstance(step, Operation) and not step.keeps and not step.random and _is_torchs(step)


def is_shared(step: Operation, graph: Graph) -> bool:
    """Tell whether what an operation reads or makes is written to, or what it makes leaves."""
    return any(graph.is_written(slot) for slot in (*uses(step), *makes(step))) or any(
        graph.is_returned(slot) for slot in makes(step)
    )


def substituted(tree: Any, instead: Mapping[Slot, Slot]) -> Any:
    """Return nested arguments with other tensors in some tensors' places."""
    if isinstance(tree, Slot):
        return instead.get(tree, tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(substituted(element, instead) for element in tree)
    if isinstance(tree, dict):
        return {key: substituted(value, instead) for key, value in tree.items()}
    return tree


def with_arguments(step: Operation, instead: Mapping[Slot, Slot]) -> Operation:
    """Return an operation that reads other tensors in some tensors' places."""
    if not any(slot in instead for slot in uses(step)):
        return step
    return replace(
        step,
        args=substituted(list(step.args), instead),
        kwargs=substituted(step.kwargs, instead),
        reads={instead.get(slot, slot): known for slot, known in step.reads.items()},
    )


def is_named(step: Any, *names: str) -> bool:
    """Tell whether a step is one of these operators: ``name.overload``."""
    if not isinstance(step, Operation):
        return False
    schema = getattr(step.function, "_schema", None)
    if schema is None:
        return False
    return f"{step.name}.{schema.overload_name or 'default'}" in names
