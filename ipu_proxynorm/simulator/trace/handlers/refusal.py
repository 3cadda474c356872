"""A row of the table, and the call that its condition looks at."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Protocol

import torch

from ipu_proxynorm.nested import tensors_in


class Facts(Protocol):
    """What there is to know of the program that a call becomes part of."""

    training: bool

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor's values are known when the program is compiled."""

    def is_strided_slice(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor is a view of a slice with a step other than 1."""


class Call:
    """One call of a torch function or an operator.

    Args:
        name: the name of the function or operator, without namespace and overload.
        given: its arguments by name, with the defaults of those left out.
        facts: the program.

    """

    def __init__(self, name: str, given: Mapping[str, Any], facts: Facts) -> None:
        self.name = name
        self._given = given
        self.facts = facts

    def __getitem__(self, name: str) -> Any:
        """Return an argument; None if the call has none of this name."""
        return self._given.get(name)

    def __contains__(self, name: str) -> bool:
        """Tell whether the call has an argument of this name."""
        return name in self._given

    @property
    def arguments(self) -> Mapping[str, Any]:
        """All arguments by name."""
        return self._given

    @property
    def tensors(self) -> List[torch.Tensor]:
        """All tensors among the arguments, in order."""
        return tensors_in(list(self._given.values()))

    @property
    def input(self) -> torch.Tensor:
        """The first tensor."""
        return self.tensors[0]

    @property
    def training(self) -> bool:
        """Whether the program is trained."""
        return self.facts.training


class Refusal(NamedTuple):
    """A condition under which the real compiler refuses an operator.

    Attributes:
        key: names the row.
        refused: what is refused, as the subject of a sentence.
        when: tells whether a call is refused.
        place: where the sources say so, ``file:line`` under ``poptorch/source`` of PopTorch 3.4.0
            or, with ``popart/`` in front, ``willow/src`` of PopART 3.4.0.
        instead: what to write, as an order.
        functions: torch functions whose call is looked at. PopTorch takes these as one operator,
            which torch would take apart before any operator could be seen, or a version of torch
            does.
        operators: aten operators whose call is looked at.
        answer: what PopTorch does with it, as a sentence.

    """

    key: str
    refused: str
    when: Callable[[Call], bool]
    place: str
    instead: str
    functions: str = ""
    operators: str = ""
    answer: str = "PopTorch 3.4 refuses it"

    @property
    def message(self) -> str:
        """The error's text, without the place in the user's program."""
        return f"{self.refused} is not supported. {self.answer} ({self.place}): {self.instead}"


def rows_by_name(rows: List[Refusal], field: str) -> Dict[str, List[Refusal]]:
    """Return the rows of each name in a row's ``functions`` or ``operators``."""
    found: Dict[str, List[Refusal]] = {}
    for row in rows:
        for name in getattr(row, field).split():
            found.setdefault(name, []).append(row)
    return found


def sizes(value: Any) -> Iterator[int]:
    """Yield the numbers of an argument that may be one number, several or none."""
    if isinstance(value, (list, tuple)):
        yield from value
    elif value is not None:
        yield value


def one_of(first: Any, second: Any) -> bool:
    """Tell whether exactly one of two arguments is given."""
    return (first is None) != (second is None)


def dtype_of(value: Any) -> Optional[torch.dtype]:
    """Return the data type that a tensor or a number has as an operand."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, bool):
        return torch.bool
    if isinstance(value, int):
        return torch.int64
    return torch.float32 if isinstance(value, float) else None
