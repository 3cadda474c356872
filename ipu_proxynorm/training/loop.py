"""The training loop: host calls, their metrics, validation and checkpoints after each epoch."""

from __future__ import annotations

import dataclasses
import time
from typing import Iterator, Union

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import dump
from ipu_proxynorm.data import training_loader
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.training.checkpoint import Checkpoint, save_checkpoint
from ipu_proxynorm.training.optimizer import step_schedule
from ipu_proxynorm.training.run import Run
from ipu_proxynorm.training.run_directory import RunDirectory
from ipu_proxynorm.training.validation import Evaluation, Validator


@dataclasses.dataclass(frozen=True)
class StepResult:
    """One host call: mean loss and accuracy of its images, before and between its updates."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    learning_rate: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """One epoch: the means of its steps, and the validation after it."""

    epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    validation: Evaluation
    best: bool


def fit(run: Run, directory: RunDirectory) -> Iterator[Union[StepResult, EpochResult]]:
    """Train ``run`` to its last epoch, yielding each step and each epoch as it ends.

    Writes metrics, and the checkpoints ``last`` and ``best`` (by validation accuracy, the earliest
    of equals), to ``directory``. Throughput excludes validation and the first, compiling, call.
    """
    config, arithmetic = run.config, run.arithmetic
    options = training_options(config.ipu, config.seed)
    loader = training_loader(
        run.data.train, options, config.ipu.micro_batch_size, config.data.workers
    )
    executor = poptorch.trainingModel(run.program, options, run.optimizer)
    validator = Validator(run)
    best_accuracy, step = -1.0, 0
    for epoch in range(1, config.training.epochs + 1):
        run.program.train()
        # Before setOptimizer: attaching brings back the optimiser as it was when the IPUs were
        # left to validation, its learning rate included.
        if executor.isCompiled() and not executor.isAttachedToDevice():
            executor.attachToDevice()
        steps = []
        for images, labels in loader:
            learning_rate = run.optimizer.param_groups[0]["lr"]
            executor.setOptimizer(run.optimizer)
            start = time.perf_counter()
            losses, right = executor(images, labels)  # one sum over micro-batches a replica
            seconds = time.perf_counter() - start
            step_schedule(run.schedule)
            step += 1
            steps.append(
                StepResult(
                    epoch=epoch,
                    step=step,
                    loss=float(losses.double().sum()) / arithmetic.micro_batches,
                    accuracy=float(right.double().sum()) / arithmetic.combined_batch,
                    learning_rate=learning_rate,
                    images_per_second=arithmetic.combined_batch / seconds,
                )
            )
            directory.log("train", step, dataclasses.asdict(steps[-1]))
            yield steps[-1]
        if executor.isAttachedToDevice():
            executor.detachFromDevice()
        validation = validator.evaluate()
        timed = steps[1:] if epoch == 1 and len(steps) > 1 else steps
        result = EpochResult(
            epoch=epoch,
            loss=sum(s.loss for s in steps) / len(steps),
            accuracy=sum(s.accuracy for s in steps) / len(steps),
            images_per_second=len(timed) / sum(1 / s.images_per_second for s in timed),
            validation=validation,
            best=validation.accuracy > best_accuracy,
        )
        best_accuracy = max(best_accuracy, validation.accuracy)
        directory.log(
            "validation",
            step,
            {"epoch": epoch, "accuracy": validation.accuracy, **dataclasses.asdict(validation)},
        )
        checkpoint = Checkpoint(
            epoch=epoch,
            validation_accuracy=validation.accuracy,
            config=dump(config),
            weights=run.model.state_dict(),
        )
        save_checkpoint(directory.checkpoint("last"), checkpoint)
        if result.best:
            save_checkpoint(directory.checkpoint("best"), checkpoint)
        yield result
