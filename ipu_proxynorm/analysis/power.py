"""The power decomposition of a tensor over instances, in one pass and in float64.

Labatie, Masters, Eaton-Rosen and Luschi, *Proxy-Normalizing Activations to Match Batch
Normalization while Removing Batch Dependence*, NeurIPS 2021 (arXiv 2106.03743).
"""

from __future__ import annotations

import dataclasses
from typing import Iterator, Tuple

import torch
from torch import Tensor

#: What the four powers measure, in the order of the paper's panels.
POWERS = ("p1", "p2", "p3", "p4")
_CHUNK = 1 << 23  # elements in float64 at once: 64 MiB


@dataclasses.dataclass(frozen=True)
class Power:
    """The four powers of one tensor, and its mean power, accumulated on its own.

    With μ and σ the mean and the standard deviation over space of one channel of one instance,
    and means over channels:

    Attributes:
        p1: (E μ)², power that is the same for all instances and places: a constant channel.
        p2: Var μ over instances: what the instances' means tell apart.
        p3: (E σ)², power inside an instance.
        p4: Var σ over instances: what the instances' spreads tell apart.
        mean_power: mean square of all elements; the four sum to it.
        instances: number of instances behind the figures.

    """

    p1: float
    p2: float
    p3: float
    p4: float
    mean_power: float
    instances: int

    @property
    def total(self) -> float:
        """Return the sum of the four powers."""
        return self.p1 + self.p2 + self.p3 + self.p4


class Moments:
    """Mean and variance of vectors, merged batch by batch (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)  # sum of squared deviations

    def update(self, values: Tensor) -> None:
        """Take in ``values`` ``(N, C)``, float64."""
        if len(values) == 0:
            return
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        total = self.count + len(values)
        delta = mean - self.mean
        self.mean = self.mean + delta * (len(values) / total)
        self.squares = self.squares + squares + delta.square() * (self.count * len(values) / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Return the population variance ``(C,)``."""
        return self.squares / self.count


class PowerAccumulator:
    """The power decomposition of all instances seen so far; memory: four numbers a channel.

    The result does not depend on how the instances were split into batches.
    """

    def __init__(self) -> None:
        self.means, self.deviations, self.powers = Moments(), Moments(), Moments()

    def update(self, y: Tensor) -> None:
        """Take in the instances of ``y`` ``(N, C, *)``, of any floating dtype, on any device."""
        for part in _chunks(y):
            mean, deviation = instance_statistics(part)
            self.means.update(mean.cpu())
            self.deviations.update(deviation.cpu())
            self.powers.update(part.double().square().flatten(1).mean(1, keepdim=True).cpu())

    def result(self) -> Power:
        """Return the decomposition.

        Raises:
            ValueError: no instance was seen.

        """
        if self.means.count == 0:
            raise ValueError("the power decomposition needs at least one instance, and saw none")
        return Power(
            p1=float(self.means.mean.square().mean()),
            p2=float(self.means.variance.mean()),
            p3=float(self.deviations.mean.square().mean()),
            p4=float(self.deviations.variance.mean()),
            mean_power=float(self.powers.mean),
            instances=self.means.count,
        )


def instance_statistics(y: Tensor) -> Tuple[Tensor, Tensor]:
    """Return mean and population standard deviation over space, each ``(N, C)``, in float64.

    Args:
        y: shape ``(N, C, *)``; without spatial dimensions each value is its own mean.

    """
    flat = y.double().reshape(y.shape[0], y.shape[1], -1)
    mean = flat.mean(2)
    return mean, (flat - mean.unsqueeze(2)).square().mean(2).sqrt()


def power_decomposition(y: Tensor) -> Power:
    """Return the power decomposition of ``y`` ``(N, C, *)``."""
    accumulator = PowerAccumulator()
    accumulator.update(y)
    return accumulator.result()


def _chunks(y: Tensor) -> Iterator[Tensor]:
    instances = max(1, _CHUNK // max(1, y[:1].numel()))
    for start in range(0, len(y), instances):
        yield y[start : start + instances]
