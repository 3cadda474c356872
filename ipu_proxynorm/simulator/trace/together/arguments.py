"""The arguments of a recorded operator: its tensors, others in their places, dimensions."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

from ..tape import Operation, Slot, slots_in
from .values import Values

#: A rule adds the operations that stand for a recorded one and returns True, or returns False where
#: it does not apply. Dimensions are those of the recorded tensors, of one micro-batch.
Rule = Callable[[Values, Operation], bool]


def tensors_of(step: Operation) -> List[Slot]:
    """Return the tensors that an operation reads."""
    return list(slots_in((step.args, step.kwargs)))


def replaced_in(step: Operation, instead: Dict[Slot, Slot]) -> List[Any]:
    """Return an operation's arguments with other tensors in some tensors' places."""

    def replaced(tree: Any) -> Any:
        if isinstance(tree, Slot):
            return instead.get(tree, tree)
        if isinstance(tree, (list, tuple)):
            return type(tree)(map(replaced, tree))
        return tree

    return [replaced(argument) for argument in step.args]


def normal(dims: Any, rank: int) -> List[int]:
    """Return dimensions as numbers from 0; all of them for None or an empty list."""
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % max(rank, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]
