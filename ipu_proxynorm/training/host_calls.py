"""The host calls of a training run: its images, the program's inputs, and what comes back."""

from __future__ import annotations

import time
import warnings
from typing import Any, Iterator, List, Mapping, Optional, Tuple

from torch import Tensor

from ipu_proxynorm.data import WORKERS_SHARE, DamageReport, training_loader, training_share, watched
from ipu_proxynorm.errors import UserNotice
from ipu_proxynorm.files.checkpoint import Progress, TrainingState
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.prediction.check import memory_check
from ipu_proxynorm.run.mixing import draw
from ipu_proxynorm.run.optimizer import set_loss_scaling
from ipu_proxynorm.run.run import Run
from ipu_proxynorm.run.schedule import loss_scaling_at
from ipu_proxynorm.training.exactness import notice, ways
from ipu_proxynorm.training.executor import TrainingExecutor


class HostCalls:
    """The training program of a run, and the images that it takes, from its position on.

    Args:
        run: what is trained.
        progress: its position, which the trainer moves on.
        start: the state that it goes on from, with all processes' random numbers; None: as the
            seed begins them.
    """

    def __init__(self, run: Run, progress: Progress, start: Optional[TrainingState]) -> None:
        self.run, self.progress, self.processes = run, progress, run.processes
        #: How the sums of the host calls are rounded, by name; see `exactness.ways`.
        self.ways: Mapping[str, Any] = {} if start is None else start.ways
        config = run.config
        options = training_options(config, run.processes.instance)
        self.share = training_share(options, config.ipu.micro_batch_size)
        self.loader = training_loader(
            run.data.train,
            options,
            config.ipu.micro_batch_size,
            config.data.workers,
            config.seed,
            progress.epoch + 1,
            progress.call,
        )
        check = None
        if self.processes.first:  # one table, one warning
            check = memory_check(config, run.program, options, run.optimizer)
        streams = None if start is None else start.streams
        self.executor = TrainingExecutor(
            run.program, options, run.optimizer, config.seed, streams, check
        )
        self.damage = DamageReport(
            run.data.train, config.data.max_corrupt, config.data.max_left_out
        )

    def batches(self) -> Iterator[Tuple[Tensor, Tensor]]:
        """Yield this process's images and labels for the host calls that are left of the epoch.

        Raises:
            DataError: a process cannot read its part, or there are too many damaged files.
        """
        batches = watched(self.loader, WORKERS_SHARE * self.run.config.training.patience)
        while True:
            batch = None
            with self.processes.together():
                batch = next(batches, None)
            if batch is None:
                return
            found = self.processes.union(self.damage.found())
            self.damage.check(found, say=self.processes.first)
            yield batch

    def make(self, inputs: List[Tensor]) -> Tuple[float, float, float]:
        """Make one host call; return mean loss and accuracy over all processes, and its seconds."""
        if not self.executor.compiled:
            with self.processes.together():
                self.executor.compile(*inputs)
            self._compare_ways()
        start = time.perf_counter()
        with self.processes.naming_losses():
            losses, right = self.executor(*inputs)  # one sum over micro-batches a replica
        seconds = time.perf_counter() - start
        arithmetic = self.run.arithmetic
        loss, correct = self.processes.sum(
            [float(losses.double().sum()), float(right.double().sum())]
        )
        return loss / arithmetic.micro_batches, correct / arithmetic.combined_batch, seconds

    def _compare_ways(self) -> None:
        """Say it where the run does not go on bit for bit."""
        now = ways(self.executor.executor)
        text = notice(self.ways, now)
        if text and self.processes.first:
            warnings.warn(text, UserNotice, stacklevel=2)
        self.ways = now

    def inputs(self, images: Tensor, labels: Tensor) -> List[Tensor]:
        """Return the program's inputs for one host call, and set what the schedules say for it."""
        config, progress = self.run.config, self.progress
        at = progress.epoch + progress.call / self.run.arithmetic.host_calls
        scaling = loss_scaling_at(config.optimizer, at, config.training.epochs)
        set_loss_scaling(self.run.optimizer, scaling)
        epoch = progress.epoch + 1
        mixing = draw(config.training, images.shape, config.seed, epoch, progress.call, self.share)
        return [images, labels, *mixing]
