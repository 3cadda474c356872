"""Loss and accuracy of a run's network over the validation images, each counted once."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.data import IGNORED, validation_loader
from ipu_proxynorm.ipu import inference_options
from ipu_proxynorm.training.run import Run


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


class Validator:
    """The validation program of a run, compiled once and called after each epoch."""

    def __init__(self, run: Run) -> None:
        self.run = run
        config = run.config
        options = inference_options(config.ipu, config.seed)
        self.loader = validation_loader(
            run.data.validation, options, config.ipu.micro_batch_size, config.data.workers
        )
        self.executor = poptorch.inferenceModel(run.program, options)

    def evaluate(self) -> Evaluation:
        """Return loss and accuracy with the network's present weights; IPUs are released after."""
        self.run.program.eval()
        loss = torch.zeros((), dtype=torch.float64)
        right = images = 0
        for batch, labels in self.loader:
            logits = self.executor(batch)
            real = labels != IGNORED
            loss += F.cross_entropy(
                logits.double(), labels.long(), ignore_index=IGNORED, reduction="sum"
            )
            right += int((logits.argmax(dim=1) == labels)[real].sum())
            images += int(real.sum())
        if self.executor.isAttachedToDevice():
            self.executor.detachFromDevice()
        return Evaluation(loss=float(loss) / images, right=right, images=images)


def evaluate(run: Run) -> Evaluation:
    """Return the validation loss and accuracy of a run's present weights."""
    return Validator(run).evaluate()
