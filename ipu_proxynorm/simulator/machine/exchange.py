"""What replicas exchange while they compute: the collectives of PopART, on every replica's tensor.

Source: ``op/collectives`` and ``replicagrouping.cpp`` of PopART.
"""

from __future__ import annotations

import enum
from typing import Callable, Dict, List, NamedTuple, Sequence

import torch
from torch import Tensor

from .._impl import createPoptorchError

# What PopART's collectives take.
_TYPES = (torch.float32, torch.float16, torch.int32)


class Grouping(NamedTuple):
    """Which replicas exchange with one another: groups of ``size``, ``stride`` replicas apart."""

    replicas: int
    stride: int
    size: int

    def check(self, replicas: int) -> None:
        """Check that there is such a grouping of the replicas.

        Raises:
            poptorch.Error: the numbers do not fit, or are of other replicas than there are.

        """
        fits = min(self) > 0 and self.replicas % (self.stride * self.size) == 0
        if not fits or self.replicas != replicas:
            raise createPoptorchError(
                f"A collective over {self.replicas} replicas in groups of {self.size} with stride "
                f"{self.stride}: there are {replicas} replicas, which must be a multiple of stride "
                "times group size."
            )

    def members(self) -> List[List[int]]:
        """Return the replicas of each group, in order."""
        width = 1 if self.size == 1 else self.stride
        return [
            [block + first + width * index for index in range(self.size)]
            for block in range(0, self.replicas, width * self.size)
            for first in range(width)
        ]


class Operator(enum.IntEnum):
    """How values are reduced, by PopART's numbers of ``CollectiveOperator``."""

    Add = 0
    Mean = 1
    Mul = 2
    Min = 3
    Max = 4
    LogicalAnd = 5
    LogicalOr = 6
    SquareAdd = 7
    Local = 8


_REDUCTIONS: Dict[Operator, Callable[[Tensor], Tensor]] = {
    Operator.Add: lambda stacked: stacked.sum(0),
    Operator.Mean: lambda stacked: stacked.sum(0) / len(stacked),
    Operator.Mul: lambda stacked: stacked.prod(0),
    Operator.Min: lambda stacked: stacked.amin(0),
    Operator.Max: lambda stacked: stacked.amax(0),
    Operator.LogicalAnd: lambda stacked: (stacked != 0).all(0),
    Operator.LogicalOr: lambda stacked: (stacked != 0).any(0),
    Operator.SquareAdd: lambda stacked: (stacked * stacked).sum(0),
}


def _reduced(values: Sequence[Tensor], operator: Operator) -> Tensor:
    """Return the values' reduction, rounded once."""
    stacked = torch.stack(list(values))
    wide = stacked.float() if stacked.dtype == torch.float16 else stacked
    return _REDUCTIONS[operator](wide).to(stacked.dtype)


def _chunk(flat: Tensor, index: int, number: int) -> Tensor:
    """Return one of ``number`` equal parts; the last ones end in zeros where they do not fit."""
    size = -(-flat.numel() // number)
    padding = flat.new_zeros(size * number - flat.numel())
    return torch.cat([flat, padding])[index * size : (index + 1) * size].clone()


class Collective:
    """An operation of the program that replicas do together. Results are flat.

    Args:
        grouping: who exchanges with whom.

    """

    exchanges = True
    runs_anywhere = True

    def __init__(self, grouping: Grouping) -> None:
        self._grouping = grouping
        self.__name__ = type(self).__name__

    def record(self, tensor: Tensor) -> Tensor:
        """Return a result of the shape that every replica gets, while the program is recorded."""
        if tensor.dtype not in _TYPES:
            raise createPoptorchError(
                f"{self.__name__}: replicas exchange float32, float16 and int32, not "
                f"{tensor.dtype}."
            )
        values = [tensor.detach().flatten()] * self._grouping.size
        return self.among(values)[0]

    def exchange(self, tensors: Sequence[Tensor]) -> List[Tensor]:
        """Return every replica's result.

        Args:
            tensors: every replica's value, all of one shape.

        """
        results: Dict[int, Tensor] = {}
        for members in self._grouping.members():
            values = [tensors[replica].flatten() for replica in members]
            results.update(zip(members, self.among(values)))
        return [results[replica] for replica in range(len(tensors))]

    def among(self, values: List[Tensor]) -> List[Tensor]:
        """Return the results of one group's members, given their flat values."""
        raise NotImplementedError


class AllGather(Collective):
    """Everybody gets all values, one after the other."""

    def among(self, values: List[Tensor]) -> List[Tensor]:
        """Return the results of one group's members, given their flat values."""
        return [torch.cat(values) for _ in values]


class AllReduce(Collective):
    """Everybody gets the reduction of all values.

    Args:
        grouping: who exchanges with whom.
        operator: the reduction.

    """

    def __init__(self, grouping: Grouping, operator: Operator) -> None:
        super().__init__(grouping)
        self._operator = operator

    def among(self, values: List[Tensor]) -> List[Tensor]:
        """Return the results of one group's members, given their flat values."""
        if self._operator == Operator.Local:
            return [value.clone() for value in values]
        reduced = _reduced(values, self._operator)
        return [reduced.clone() for _ in values]


class ReduceScatter(AllReduce):
    """Everybody gets a part of the reduction of all values; with ``Local``, of its own value."""

    def among(self, values: List[Tensor]) -> List[Tensor]:
        """Return the results of one group's members, given their flat values."""
        return [_chunk(value, i, len(values)) for i, value in enumerate(super().among(values))]


class AllToAll(Collective):
    """Everybody gets a part of everybody's value."""

    def among(self, values: List[Tensor]) -> List[Tensor]:
        """Return the results of one group's members, given their flat values."""
        number = len(values)
        if values[0].numel() % number:
            raise createPoptorchError(
                f"{self.__name__}: a tensor of {values[0].numel()} elements does not split into "
                f"equal parts for {number} replicas."
            )
        parts = [value.chunk(number) for value in values]
        return [torch.cat([part[index] for part in parts]) for index in range(number)]
