"""How gradients are added up: over the micro-batches of a weight update, and over replicas."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

import torch

from .. import enums
from .._impl import createPoptorchError
from ..machine.processes import sumOverProcesses
from ..machine.replica_groups import ReplicaGroups
from ..optimizer.device_optimizer import DeviceOptimizer
from ..options import Options

Gradients = Dict[str, torch.Tensor]


class Accumulation:
    """Adds up the gradients of one replica's micro-batches, or sums of those of all replicas."""

    def __init__(
        self,
        options: Options,
        names: List[str],
        optimizer: Optional[DeviceOptimizer],
        sums: bool = False,
    ) -> None:
        training = options.Training
        mean = training.accumulation_and_replication_reduction_type == enums.ReductionType.Mean
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        # Of sums of several there is no mean of what has come so far.
        self._running = mean and strategy == enums.MeanReductionStrategy.Running and not sums
        self._factor = 1.0 / training.gradient_accumulation if mean and not self._running else 1.0
        self._names = names
        self._optimizer = optimizer
        self._total: List[torch.Tensor] = []
        self._count = 0

    def __call__(self, gradients: List[torch.Tensor]) -> None:
        """Take the gradients of a micro-batch, or their sum over several."""
        if not gradients:
            return
        self._count += 1
        if not self._total:
            self._total = [self._in_accumulator(*item) for item in zip(self._names, gradients)]
        elif self._running:  # the mean of what has come so far
            torch._foreach_mul_(self._total, (self._count - 1) / self._count)
            torch._foreach_add_(self._total, gradients, alpha=1 / self._count)
        else:
            torch._foreach_add_(self._total, gradients)

    def _in_accumulator(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        if self._optimizer is None:
            return gradient
        return gradient.to(self._optimizer.accumulatorType(name))

    def result(self) -> List[torch.Tensor]:
        """Return what has been added up, as the options reduce it."""
        if self._total and self._factor != 1.0:
            torch._foreach_mul_(self._total, self._factor)
        return self._total


class Reduction:
    """Adds or averages gradients over the replicas, of all processes, that share a parameter."""

    def __init__(
        self, options: Options, names: List[str], groups: Dict[str, ReplicaGroups]
    ) -> None:
        training = options.Training
        self._mean = (
            training.accumulation_and_replication_reduction_type == enums.ReductionType.Mean
        )
        self._processes = options.Distributed.numProcesses
        self._replicas = options.replication_factor * self._processes
        self._names = names
        self._groups = groups
        if groups and self._processes > 1:
            raise createPoptorchError(
                f"Parameters of their own for each replica ({', '.join(groups)}) are simulated "
                "within one process only: give all replicas to it with replicationFactor."
            )
        self._totals: Dict[Tuple[str, int], torch.Tensor] = {}

    def add(self, replica: int, gradients: List[torch.Tensor]) -> None:
        """Take one replica's gradients; they may be changed in place."""
        for name, gradient in zip(self._names, gradients):
            groups = self._groups.get(name)
            key = (name, 0 if groups is None else groups.of(replica))
            if key in self._totals:
                self._totals[key].add_(gradient)
            else:
                self._totals[key] = gradient

    def result(self) -> Gradients:
        """Return the gradients by name; of a per-replica parameter with the groups in front."""
        sumOverProcesses(list(self._totals.values()), self._processes)
        reduced: Gradients = {}
        for name in self._names:
            groups = self._groups.get(name)
            if groups is None:
                total = self._totals.get((name, 0))
                if total is None:
                    continue
            else:
                total = torch.stack([self._totals[name, g] for g in range(groups.number)])
            # The mean is over all replicas, also where only some of them share the parameter.
            averaged = self._mean and self._replicas > 1
            reduced[name] = total.div_(self._replicas) if averaged else total
        return reduced
