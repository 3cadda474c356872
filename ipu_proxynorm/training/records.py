"""The figures of a run's host calls and epochs, read from its metrics."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

from ipu_proxynorm.files.json_lines import read_lines
from ipu_proxynorm.run.directory import METRICS


@dataclasses.dataclass(frozen=True)
class Step:
    """One host call: its epoch, mean loss in nats and accuracy, and images per second."""

    epoch: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Validated:
    """The validation after an epoch: mean loss in nats, and accuracy."""

    epoch: int
    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Records:
    """What the metrics of a run hold.

    Attributes:
        steps: every host call, in order.
        validations: by epoch.
    """

    steps: List[Step]
    validations: Mapping[int, Validated]

    @classmethod
    def of(cls, folder: Path) -> Records:
        """Read those of the run in ``folder``; none where it has no metrics.

        Raises:
            UserError: a line is not one that training writes.
        """
        entries = read_lines(folder / METRICS, _entry, "a record of a run")
        return cls(
            [entry for entry in entries if isinstance(entry, Step)],
            {entry.epoch: entry for entry in entries if isinstance(entry, Validated)},
        )

    def curve(self, host_calls: int) -> List[Dict[str, Optional[float]]]:
        """Return, per epoch, ``loss``, ``accuracy``, ``validation_loss``, ``validation_accuracy``.

        A loss that is not finite, and a validation that was not due, are None.

        Args:
            host_calls: of an epoch; one that has fewer was not ended.
        """
        points: List[Dict[str, Optional[float]]] = []
        for start in range(0, len(self.steps) - host_calls + 1, host_calls):
            steps = self.steps[start : start + host_calls]
            validation = self.validations.get(steps[0].epoch)
            points.append(
                {
                    "loss": finite(sum(step.loss for step in steps) / host_calls),
                    "accuracy": sum(step.accuracy for step in steps) / host_calls,
                    "validation_loss": None if validation is None else finite(validation.loss),
                    "validation_accuracy": None if validation is None else validation.accuracy,
                }
            )
        return points


def _entry(values: Mapping[str, Any]) -> Union[Step, Validated, None]:
    """Return what a line says; None: of averaged weights.

    Raises:
        ValueError, KeyError, TypeError: it is not one that training writes.
    """
    kind = values["kind"]
    if kind not in ("train", "validation", "average"):
        raise ValueError(kind)
    if kind == "average":
        return None
    common = int(values["epoch"]), float(values["loss"]), float(values["accuracy"])
    if kind == "validation":
        return Validated(*common)
    speed = float(values["images_per_second"])
    if speed <= 0:
        raise ValueError(speed)
    return Step(*common, speed)


def finite(value: float) -> Optional[float]:
    """Return ``value``, or None where it is infinite or no number."""
    return value if math.isfinite(value) else None
