"""An operator without a rule for several micro-batches: called for one after the other."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List, Sequence, Tuple

import torch

from ..tape import Slot


class Each:
    """Calls an operator for each micro-batch, in order.

    Its arguments come flat: those at ``stacked`` as tensors (micro-batches, ...), those at
    ``listed`` as one tensor for each micro-batch, others are the same for all.

    Args:
        function: the operator.
        build: makes the operator's arguments of a micro-batch's flat ones.
        count: the number of the micro-batches.
        stacked: positions.
        listed: positions.
        outputs: what the operator returns, with something for each tensor that is wanted.
        summed: for each tensor that the operator returns, whether the micro-batches' are summed
            rather than stacked.

    """

    runs_anywhere = True
    is_kernel = True

    def __init__(
        self,
        function: Callable,
        build: Callable[[Sequence[Any]], Tuple[List[Any], Any]],
        count: int,
        stacked: Sequence[int],
        listed: Sequence[int],
        outputs: Any,
        summed: Sequence[bool],
    ) -> None:
        self._function = function
        self._build = build
        self._count = count
        self._stacked = frozenset(stacked)
        self._listed = frozenset(listed)
        self._outputs = outputs
        self._summed = tuple(summed)
        self.__name__ = "each_" + function._schema.name.split("::")[-1]  # type: ignore[attr-defined]

    def __call__(self, *flat: Any) -> Tuple[torch.Tensor, ...]:
        """Return what is wanted of the operator's results, of all micro-batches."""
        rows = [
            value.unbind() if at in self._stacked else value if at in self._listed else None
            for at, value in enumerate(flat)
        ]
        found: List[List[torch.Tensor]] = []
        for number in range(self._count):
            own = [value if row is None else row[number] for value, row in zip(flat, rows)]
            args, kwargs = self._build(own)
            found.append(list(_wanted(self._outputs, self._function(*args, **kwargs))))
        columns = list(zip(*found))
        return tuple(
            _sum(column) if summed else torch.stack(column)
            for column, summed in zip(columns, self._summed)
        )


def _wanted(outputs: Any, result: Any) -> Iterator[torch.Tensor]:
    if isinstance(outputs, Slot):
        yield result
    elif isinstance(outputs, (list, tuple)):
        for one, other in zip(outputs, result):
            yield from _wanted(one, other)


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total
