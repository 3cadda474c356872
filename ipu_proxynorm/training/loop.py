"""The training loop: host calls, their metrics, validation and checkpoints after each epoch."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from ipu_proxynorm.config import TrainingConfig, dump
from ipu_proxynorm.data import DataError
from ipu_proxynorm.files.checkpoint import Checkpoint, plain
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.fine_tuning import set_training_mode
from ipu_proxynorm.run.interruption import Interrupted, Interruption
from ipu_proxynorm.run.run import Run
from ipu_proxynorm.run.schedule import step_schedule
from ipu_proxynorm.training.averaging import weights_replaced
from ipu_proxynorm.training.host_calls import HostCalls
from ipu_proxynorm.training.readings import Readings
from ipu_proxynorm.training.results import EpochResult, StepResult, mean_speed
from ipu_proxynorm.training.resume import capture, restore
from ipu_proxynorm.training.validation import Evaluation, Stopped, Validator


class Trainer:
    """A run under way: its program, its position, and the checkpoints of both.

    Where several processes share the run, each has a trainer, and all call the same methods.

    Args:
        run: what is trained.
        directory: where metrics and checkpoints go; only the first process writes there.
        start: checkpoint of the same run to go on from; None: its beginning.
        interruption: whether a signal asks the run to stop; None: none does.
    """

    def __init__(
        self,
        run: Run,
        directory: RunDirectory,
        start: Optional[Checkpoint] = None,
        interruption: Optional[Interruption] = None,
    ) -> None:
        self.run, self.directory = run, directory
        self.interruption = interruption or Interruption()
        self.processes = run.processes
        self._configuration = dump(run.config)
        self.progress = restore(run, start)
        state = None if start is None else start.state
        # A run that ended before its first checkpoint may have logged steps all the same.
        directory.rewind(0 if state is None else state.metrics_bytes, self.progress.step)
        self.calls = HostCalls(run, self.progress, state)
        self.validator = Validator(run, self.interruption)
        self.readings = Readings(run, self.progress.step)
        if state is not None:
            self.readings.load_state_dict(state.extra)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        self._first_epoch = self.progress.epoch + 1  # whose first host call compiles

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of the present position.

        Raises:
            Diverged: the weights are not finite; the checkpoints written before stay.
        """
        config = self.run.config
        with self.processes.together():
            self.readings.refresh(self.progress.step)
        streams = self.processes.gather(self.calls.executor.streams())
        with self.processes.together():
            if self.processes.first:
                checkpoint = capture(
                    self.run,
                    all_streams(streams),
                    self.progress,
                    self._configuration,
                    self.directory.metrics_bytes,
                    self.readings.state_dict(),
                    self.calls.ways,
                )
                self.directory.save(checkpoint, best, config.training.keep_checkpoints)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()

    def due(self) -> bool:
        """Tell whether a checkpoint within the epoch is to be written now."""
        training, progress = self.run.config.training, self.progress
        if progress.call == self.run.arithmetic.host_calls:
            return False  # the epoch's own follows
        every, minutes = training.checkpoint_every, training.checkpoint_minutes
        if every is not None and progress.call % every == 0:
            return True
        if minutes is None:
            return False
        return self.processes.of_first(time.monotonic() - self._saved_at >= 60 * minutes)

    def stop_if_asked(self) -> None:
        """Write a checkpoint and leave, where a signal asks for it, in whichever process.

        Raises:
            Interrupted: it did.
        """
        number = self.processes.largest(self.interruption.signal_number or 0)
        if not number:
            return
        if self._saved_step != self.progress.step:
            self.save()
        raise self.processes.agreed(
            Interrupted(
                f"interrupted after {self.progress}; checkpoint "
                f"{str(self.directory.checkpoint('last'))!r} is written: go on with --resume",
                number,
            )
        )

    def epoch(self) -> Iterator[StepResult]:
        """Make the host calls that are left of the epoch under way.

        Raises:
            DataError: the images cannot be read; a checkpoint is written first.
            Interrupted: a signal asks for it; likewise.
            Diverged: loss or weights are not finite any more.
        """
        run, progress = self.run, self.progress
        try:
            for images, labels in self.calls.batches():
                learning_rate = run.optimizer.param_groups[0]["lr"]
                inputs = self.calls.inputs(images, labels)
                loss, accuracy, seconds = self.calls.make(inputs)
                step_schedule(run.schedule)
                progress.step += 1
                progress.call += 1
                result = StepResult(
                    epoch=progress.epoch + 1,
                    step=progress.step,
                    loss=loss,
                    accuracy=accuracy,
                    learning_rate=learning_rate,
                    images_per_second=run.arithmetic.combined_batch / seconds,
                    loss_scaling=run.optimizer.loss_scaling,  # type: ignore[attr-defined]
                )
                self.watch(result, inputs)
                progress.loss += result.loss
                progress.accuracy += result.accuracy
                self.directory.log("train", progress.step, dataclasses.asdict(result))
                if self.due():
                    self.save()
                yield result
                self.stop_if_asked()
        except DataError as error:
            raise self.stopped(error) from error

    def stopped(self, error: DataError) -> DataError:
        """Write a checkpoint, and return the error that says where the run stands.

        Raises:
            Interrupted: a signal asks to stop as well.
        """
        self.stop_if_asked()  # who ends the processes of a run may end their workers first
        if self._saved_step != self.progress.step:
            self.save()
        return self.processes.agreed(
            DataError(f"{error}; the run stands after {self.progress}: --resume")
        )

    def watch(self, result: StepResult, inputs: List[Tensor]) -> None:
        """Read the weights if that is due, and stop a run that has diverged.

        Raises:
            Diverged: the loss of a host call, or the weights after it, are not finite.
        """
        if not math.isfinite(result.loss):
            self.calls.executor.detach()  # the diagnosis is a program of its own
            raise self.processes.agreed(
                self.readings.explain(result.epoch, result.step, result.loss, inputs)
            )
        if self.readings.due(result.step, self.progress.call):
            with self.processes.together():
                self.readings.take(result.epoch, result.step)

    def validate(self, epoch: int) -> Tuple[Optional[Evaluation], Optional[Evaluation]]:
        """Return what the weights and their average reach after ``epoch``, where that is due."""
        training = self.run.config.training
        if not validation_due(training, epoch):
            return None, None
        self.calls.executor.detach()
        self.share_buffers()
        validation = self.validator.evaluate()
        average = self.readings.average
        if average is None or average.readings == 0:
            return validation, None
        with weights_replaced(self.run.model, self.processes.of_first(average.weights())):
            return validation, self.validator.evaluate()

    def share_buffers(self) -> None:
        """Give all processes the first one's running statistics, as replicas have the first's.

        Parameters are the same everywhere: every process makes the same weight updates.
        """
        if self.processes.alone:
            return
        state = self.run.model.state_dict()
        names = [name for name, _ in self.run.model.named_buffers() if name in state]
        own = {name: plain(state[name]) for name in names}
        self.run.model.load_state_dict(self.processes.of_first(own), strict=False)

    def end_epoch(self, steps: List[StepResult]) -> EpochResult:
        """Validate, write the checkpoints ``last`` and ``best``, and return the epoch's figures.

        Raises:
            DataError: the validation images cannot be read; a checkpoint is written first.
            Interrupted: a signal asks for it; likewise, and the run goes on with this validation.
        """
        progress = self.progress
        try:
            validation, average = self.validate(progress.epoch + 1)
        except DataError as error:
            raise self.stopped(error) from error
        except Stopped:
            self.stop_if_asked()
            raise
        timed = steps[1:] if len(steps) > 1 and steps[0].epoch == self._first_epoch else steps
        calls = progress.call
        result = EpochResult(
            epoch=progress.epoch + 1,
            loss=progress.loss / calls,
            accuracy=progress.accuracy / calls,
            images_per_second=mean_speed(timed),
            validation=validation,
            best=validation is not None and validation.accuracy > progress.best_accuracy,
            average=average,
        )
        for kind, evaluation in (("validation", validation), ("average", average)):
            if evaluation is not None:
                figures = {"accuracy": evaluation.accuracy, **dataclasses.asdict(evaluation)}
                self.directory.log(kind, progress.step, {"epoch": result.epoch, **figures})
        progress.epoch += 1
        progress.call, progress.loss, progress.accuracy = 0, 0.0, 0.0
        if validation is not None:
            progress.validation_accuracy = validation.accuracy
            progress.best_accuracy = max(progress.best_accuracy, validation.accuracy)
        self.save(result.best)
        return result

    def fit(self) -> Iterator[Union[StepResult, EpochResult]]:
        """Train to the last epoch; see :func:`fit`."""
        run, progress = self.run, self.progress
        while progress.epoch < run.config.training.epochs:
            run.program.train()
            set_training_mode(run.model, run.config.training.trainable)
            self.calls.executor.attach()
            steps = []
            for result in self.epoch():
                steps.append(result)
                yield result
            yield self.end_epoch(steps)
            if progress.epoch < run.config.training.epochs:
                self.stop_if_asked()


def all_streams(streams: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    """Return the random streams of all replicas ``(replicas, n)`` from those of each process."""
    known = [tensor for tensor in streams if tensor is not None]
    return torch.cat(known) if len(known) == len(streams) else None


def validation_due(training: TrainingConfig, epoch: int) -> bool:
    """Tell whether the network is validated after ``epoch`` (from 1)."""
    if training.validate == "never":
        return False
    last = epoch == training.epochs
    return last or (training.validate == "epoch" and epoch % training.validate_every == 0)


def fit(
    run: Run,
    directory: RunDirectory,
    start: Optional[Checkpoint] = None,
    interruption: Optional[Interruption] = None,
) -> Iterator[Union[StepResult, EpochResult]]:
    """Train ``run`` to its last epoch, yielding each step and each epoch as it ends.

    Writes metrics, and the checkpoints ``last`` and ``best`` (by validation accuracy, the earliest
    of equals), to ``directory``. Throughput excludes validation and the first, compiling, call.
    Going on from ``start`` gives, bit for bit, what the run would have given without a stop.

    Raises:
        UserError: ``start`` is a checkpoint of another run, the disk is full, or the images cannot
            be read.
        Diverged: loss or weights are not finite any more; says where and what to try.
        Interrupted: ``interruption`` asked for it.
    """
    yield from Trainer(run, directory, start, interruption).fit()
