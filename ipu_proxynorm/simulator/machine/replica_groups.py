"""Which replicas share a parameter that is not the same on all of them."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Tuple

import torch

from .. import _impl, enums


class ReplicaGroups(NamedTuple):
    """Replicas in ``number`` groups of ``size``, neighbours or interleaved."""

    number: int
    size: int
    interleaved: bool

    @classmethod
    def make(cls, kind: enums.CommGroupType, shards: int, replicas: int) -> ReplicaGroups:
        """Return the groups that ``replicaGrouping(kind, shards, ...)`` asks for."""
        if kind == enums.CommGroupType.All:
            size = replicas
        elif kind == enums.CommGroupType.NoGrouping:
            size = 1
        else:
            size = shards
        if size < 1 or replicas % size != 0:
            raise _impl.createPoptorchError(
                f"replicaGrouping: groups of {size} replicas do not divide the replication factor "
                f"({replicas})."
            )
        return cls(replicas // size, size, kind == enums.CommGroupType.Orthogonal)

    def of(self, replica: int) -> int:
        """Return the group of a replica."""
        return replica % self.number if self.interleaved else replica // self.size

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Check that a parameter has one slice for each group in front.

        Raises:
            poptorch.Error: it is a number, or its first dimension is not the number of groups.

        """
        if tensor.dim() == 0:
            raise _impl.createPoptorchError(
                "Scalars cannot be passed as per-replica weight tensor values"
            )
        if tensor.shape[0] != self.number:
            raise _impl.createPoptorchError(
                f"Per-replica parameter {name} has shape {list(tensor.shape)}, but its first "
                f"dimension must be the number of replica groups ({self.number})."
            )


# Kind of groups, their size, and which of a group's values returns.
Grouping = Tuple[enums.CommGroupType, int, enums.VariableRetrievalMode]


class GroupedParameter:
    """A parameter as one executor sees it: with ``replicaGrouping``, otherwise as it is."""

    def __init__(
        self, groupings: Dict[str, Grouping], name: str, parameter: torch.nn.Parameter
    ) -> None:
        self._groupings = groupings
        self._name = name
        self._parameter = parameter

    def replicaGrouping(
        self,
        comm_group_type: enums.CommGroupType,
        shards: int,
        variable_retrieval_mode: enums.VariableRetrievalMode,
    ) -> None:
        """Let groups of replicas have values of their own, given along the first dimension."""
        self._groupings[self._name] = (
            comm_group_type,
            shards,
            variable_retrieval_mode,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parameter, name)
