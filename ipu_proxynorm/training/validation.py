"""Loss and accuracy of a run's network over the validation images, each counted once."""

from __future__ import annotations

import dataclasses
from typing import Optional, Sequence, Tuple

import torch
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.data import (
    IGNORED,
    WORKERS_SHARE,
    DamageReport,
    DataError,
    validation_loader,
    watched,
)
from ipu_proxynorm.ipu import inference_options
from ipu_proxynorm.run.interruption import Interruption
from ipu_proxynorm.run.run import Run


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats, no smoothing) and right answers over ``images`` images."""

    loss: float
    right: int
    images: int

    @property
    def accuracy(self) -> float:
        """Right answers as a share of the images."""
        return self.right / self.images


class Stopped(Exception):
    """A signal asks the run to stop; what was validated so far does not count."""


class Validator:
    """The validation program of a run, compiled once and called after each epoch.

    Args:
        run: what is validated.
        interruption: whether a signal asks to stop, looked at before each host call; None: none.
    """

    def __init__(self, run: Run, interruption: Optional[Interruption] = None) -> None:
        self.run = run
        self.interruption = interruption or Interruption()
        config = run.config
        options = inference_options(config, run.processes.instance)
        self.loader = validation_loader(
            run.data.validation, options, config.ipu.micro_batch_size, config.data.workers
        )
        self.executor = poptorch.inferenceModel(run.program, options)
        self.damage = DamageReport(
            run.data.validation, config.data.max_corrupt, config.data.max_left_out
        )

    def evaluate(self) -> Evaluation:
        """Return loss and accuracy with the network's present weights; IPUs are released after.

        Each of several processes has a part of the images; all return the figures of the whole.

        Raises:
            DataError: too many of the image files are damaged, or a worker process has died.
            Stopped: a signal asks for it, in whichever process.
        """
        processes = self.run.processes
        sums: Sequence[float] = ()
        with processes.together():
            sums = self._own_sums()
        loss, right, images, stopped = processes.sum(sums)
        if stopped:
            raise Stopped
        try:
            self.damage.check(processes.union(self.damage.found()), say=processes.first)
        except DataError as error:
            raise processes.agreed(error) from None
        return Evaluation(loss=loss / images, right=int(right), images=int(images))

    def _own_sums(self) -> Tuple[float, int, int, bool]:
        """Return summed loss, right answers and images of this process's part; whether it stopped.

        A signal to one process leaves the others at work: they hear of it when all have ended.
        """
        self.run.program.eval()
        self._begin_streams()
        loss = torch.zeros((), dtype=torch.float64)
        right = images = 0
        stopped = False
        patience = WORKERS_SHARE * self.run.config.training.patience
        for batch, labels in watched(self.loader, patience):
            if self.interruption.signal_number is not None:
                stopped = True
                break
            logits = self.executor(batch)
            real = labels != IGNORED
            loss += F.cross_entropy(
                logits.double(), labels.long(), ignore_index=IGNORED, reduction="sum"
            )
            right += int((logits.argmax(dim=1) == labels)[real].sum())
            images += int(real.sum())
        if self.executor.isAttachedToDevice():
            self.executor.detachFromDevice()
        return float(loss), right, images, stopped

    def _begin_streams(self) -> None:
        """Let stochastic rounding draw the same each time, wherever the run was resumed."""
        if self.executor.isCompiled():
            if not self.executor.isAttachedToDevice():
                self.executor.attachToDevice()
            self.executor.rng_state = [self.run.config.seed]


def evaluate(run: Run) -> Evaluation:
    """Return the validation loss and accuracy of a run's present weights."""
    return Validator(run).evaluate()
