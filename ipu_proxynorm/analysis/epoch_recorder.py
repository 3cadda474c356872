"""Records the power after each normalization while a run trains, from its checkpoints."""

from __future__ import annotations

from typing import Optional

import torch

from ipu_proxynorm.analysis.measure import Measure, on_the_host, power_of
from ipu_proxynorm.analysis.power_log import append_power_log, epochs, rewind_power_log
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.files.checkpoint import Checkpoint, load_checkpoint
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import Run, build, load_weights


class EpochRecorder:
    """Appends to a run's ``power.jsonl`` every ``training.analyse_every`` epochs.

    The weights come from the checkpoint of the epoch, so the program on the IPUs is not touched;
    the cost is one inference of 64 validation images on the host.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        self.config, self.directory = config, directory
        self._twin: Optional[Run] = None

    def go_on(self, start: Checkpoint) -> None:
        """Take up a run that goes on from ``start``: its record is that of a run never stopped.

        What was measured after ``start`` is forgotten; what was not yet, when the run was killed
        right after an epoch's checkpoint, is measured now.
        """
        if self.config.training.analyse_every is None:
            return
        rewind_power_log(self.directory.path, start.epoch)
        ends_epoch = start.state is not None and start.state.progress.call == 0
        if ends_epoch and self._due(start.epoch) and start.epoch not in epochs(self.directory.path):
            self._measure(start.epoch, start)

    def record(self, epoch: int) -> None:
        """Measure the network as ``epoch`` left it, if it is that epoch's turn."""
        if self._due(epoch):
            self._measure(epoch, load_checkpoint(self.directory.checkpoint("last")))

    def _due(self, epoch: int) -> bool:
        every = self.config.training.analyse_every
        return every is not None and epoch > 0 and epoch % every == 0

    def _measure(self, epoch: int, checkpoint: Checkpoint) -> None:
        if self._twin is None:
            with torch.random.fork_rng(devices=[]):  # training's streams stay where they are
                self._twin = build(on_the_host(self.config))
        load_weights(self._twin, checkpoint)
        append_power_log(self.directory.path, epoch, power_of(self._twin, Measure(), trained=True))
