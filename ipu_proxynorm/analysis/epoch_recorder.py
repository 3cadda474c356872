"""Records the power after each normalization while a run trains, from its checkpoints."""

from __future__ import annotations

from typing import Optional

import torch

from ipu_proxynorm.analysis.measure import Measure, on_the_host, power_of
from ipu_proxynorm.analysis.power_log import append_power_log
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.files.checkpoint import load_checkpoint
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

    def record(self, epoch: int) -> None:
        """Measure the network as ``epoch`` left it, if it is that epoch's turn."""
        every = self.config.training.analyse_every
        if every is None or epoch % every:
            return
        if self._twin is None:
            with torch.random.fork_rng(devices=[]):  # training's streams stay where they are
                self._twin = build(on_the_host(self.config))
        load_weights(self._twin, load_checkpoint(self.directory.checkpoint("last")))
        append_power_log(self.directory.path, epoch, power_of(self._twin, Measure(), trained=True))
