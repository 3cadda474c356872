"""The figures of a run's host calls and epochs, read from its metrics."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Union

from ipu_proxynorm.files.json_lines import Unexpected, each_line
from ipu_proxynorm.run.directory import METRICS
from ipu_proxynorm.run.state import is_number


@dataclasses.dataclass(frozen=True)
class Step:
    """One host call: its epoch, mean loss in nats and accuracy, and images per second."""

    epoch: int
    accuracy: float
    loss: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Validated:
    """The validation after an epoch: accuracy, and mean loss in nats."""

    epoch: int
    accuracy: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Averaged:
    """The validation of averaged weights after an epoch: accuracy."""

    epoch: int
    accuracy: float


Entry = Union[Step, Validated, Averaged]


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
        entries = list(records(folder))
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


def records(folder: Path) -> Iterator[Entry]:
    """Yield what the lines of a run's metrics say, without a last one that was cut short.

    Raises:
        UserError: a line is not one that training writes, or the file cannot be read.
    """
    return each_line(folder / METRICS, _entry, "a record of a run")


def _entry(values: Mapping[str, Any]) -> Entry:
    """Return what a line says.

    Raises:
        Unexpected: a value is not what it should be.
        ValueError, KeyError, TypeError: it is not a record at all.
    """
    kind, epoch, accuracy = values["kind"], values["epoch"], values["accuracy"]
    if kind not in ("train", "validation", "average"):
        raise Unexpected("kind is not train, validation or average")
    if not isinstance(epoch, int) or not is_number(epoch, 1):
        raise Unexpected("epoch is not a number from 1 up")
    if not is_number(accuracy, 0, 1):
        raise Unexpected("accuracy is not a number from 0 to 1")
    if kind == "average":
        return Averaged(epoch, accuracy)
    loss = values["loss"]
    if not isinstance(loss, (int, float)):  # which need not be finite
        raise Unexpected("loss is not a number")
    if kind == "validation":
        return Validated(epoch, accuracy, loss)
    speed = values["images_per_second"]
    if not is_number(speed) or speed <= 0:
        raise Unexpected("images_per_second is not a number above 0")
    return Step(epoch, accuracy, loss, speed)


def finite(value: float) -> Optional[float]:
    """Return ``value``, or None where it is infinite or no number."""
    return value if math.isfinite(value) else None
