"""What training yields: the figures of a host call, and of an epoch."""

from __future__ import annotations

import dataclasses
from typing import List, Optional

from ipu_proxynorm.training.validation import Evaluation


@dataclasses.dataclass(frozen=True)
class StepResult:
    """One host call: mean loss and accuracy of its images, before and between its updates."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    learning_rate: float
    images_per_second: float
    loss_scaling: float = 1.0


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """One epoch: the means of its steps, and the validation after it, if there was one.

    ``average`` is the validation of the averaged weights.
    """

    epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    validation: Optional[Evaluation]
    best: bool
    average: Optional[Evaluation] = None


def mean_speed(steps: List[StepResult]) -> float:
    """Return images per second over ``steps``; 0 for none, as after a stop before validation."""
    return len(steps) / sum(1 / s.images_per_second for s in steps) if steps else 0.0
