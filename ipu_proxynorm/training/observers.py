"""What follows a run from outside: its state on disk, and Weights & Biases where asked for."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Optional, Union

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.state import StateRecorder, recorded
from ipu_proxynorm.training.results import EpochResult, StepResult
from ipu_proxynorm.training.tracking import WandbTracker


class Observers:
    """Takes note of how a run stands, on disk and, where asked for, at Weights & Biases.

    Args:
        recorder: the recorder of the run's state.
        tracker: at Weights & Biases; None: it is not asked for.
    """

    def __init__(self, recorder: StateRecorder, tracker: Optional[WandbTracker]) -> None:
        self._recorder, self._tracker, self._step = recorder, tracker, 0

    def __call__(self, result: Union[StepResult, EpochResult]) -> None:
        """Take note of a step or an epoch."""
        if isinstance(result, StepResult):
            self._step = result.step
        else:
            self._recorder.write()
        if self._tracker is not None:
            self._tracker.log(result, self._step)


@contextlib.contextmanager
def observing(wandb: Any, config: RunConfig, directory: RunDirectory) -> Iterator[Observers]:
    """Record how a run stands meanwhile, and how it ends.

    Args:
        wandb: the module, see `load_wandb`; None: not asked for.
        config: the configuration of the run.
        directory: the run's folder.

    Raises:
        UserError: Weights & Biases cannot be reached, or asks for a key.
    """
    with recorded(directory.path) as recorder:
        if wandb is None:
            yield Observers(recorder, None)
            return
        tracker = WandbTracker(wandb, config, str(directory.path), recorder.started)
        try:
            yield Observers(recorder, tracker)
        except BaseException:
            tracker.close(failed=True)
            raise
        tracker.close()
