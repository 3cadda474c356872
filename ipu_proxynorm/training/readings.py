"""Readings of the weights while training: for their average, and for the diagnosis of an overflow.

Reading makes the IPUs wait, so it happens once an epoch, where a checkpoint is written anyway, or
every ``training.weights_every`` host calls.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Sequence

from torch import Tensor

from ipu_proxynorm.files.checkpoint import plain
from ipu_proxynorm.run.run import Run
from ipu_proxynorm.training.averaging import WeightAverage
from ipu_proxynorm.training.diagnosis import (
    Diverged,
    loss_not_finite,
    not_finite,
    weights_not_finite,
)


class Readings:
    """The weights of a run as they were last read, and their average.

    Args:
        run: whose weights; as it starts or goes on.
        step: host calls done until then.
    """

    def __init__(self, run: Run, step: int = 0) -> None:
        self.run = run
        self.average = WeightAverage.of(run.config.training)
        self._read(step)

    def _read(self, step: int) -> None:
        self.weights: Dict[str, Tensor] = plain(self.run.model.state_dict())
        self.step = step

    def due(self, step: int, call: int) -> bool:
        """Tell whether the weights are to be read after a host call.

        Args:
            step: host calls done in the run.
            call: host calls done in the epoch.
        """
        every = self.run.config.training.weights_every
        if every is None:
            return call == self.run.arithmetic.host_calls
        return step % every == 0

    def refresh(self, step: int) -> None:
        """Read the weights after host call ``step``, for the diagnosis alone.

        Raises:
            Diverged: they are not finite.
        """
        if step == self.step:
            return
        before, step_before = self.weights, self.step
        self._read(step)
        lost = not_finite(self.weights)
        if lost:
            self.weights, self.step = before, step_before
            raise weights_not_finite(self.run, f"step {step}", lost)

    def take(self, epoch: int, step: int) -> None:
        """Read the weights after host call ``step``, which is in ``epoch``, into the average.

        Raises:
            Diverged: they are not finite.
        """
        self.refresh(step)
        if self.average is not None and epoch >= self.run.config.training.average_from_epoch:
            self.average.update(self.weights)

    def explain(self, epoch: int, step: int, loss: float, inputs: Sequence[Tensor]) -> Diverged:
        """Return the error for a loss that is not finite; the IPUs must be free.

        Args:
            epoch: from 1.
            step: the step of the host call, from 1.
            loss: its loss.
            inputs: its inputs.
        """
        where = f"step {step} (epoch {epoch})"
        return loss_not_finite(self.run, where, loss, self.weights, self.step, step, inputs)

    def state_dict(self) -> Dict[str, Any]:
        """Return what a run needs to go on with the average exactly."""
        return {} if self.average is None else {"average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        if self.average is not None and "average" in state:
            self.average.load_state_dict(state["average"])
