"""Training and validation of a configured run, and what it leaves on disk."""

from ipu_proxynorm.files.checkpoint import (
    Checkpoint,
    Progress,
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.interruption import Interrupted, Interruption
from ipu_proxynorm.run.processes import Processes, connect
from ipu_proxynorm.run.run import Run, averaged, build, load_weights
from ipu_proxynorm.training.loop import EpochResult, StepResult, fit
from ipu_proxynorm.training.resume import check_continues
from ipu_proxynorm.training.validation import Evaluation, Validator, evaluate

__all__ = [
    "Checkpoint",
    "EpochResult",
    "Evaluation",
    "Interrupted",
    "Interruption",
    "Processes",
    "Progress",
    "Run",
    "RunDirectory",
    "StepResult",
    "TrainingState",
    "Validator",
    "averaged",
    "build",
    "check_continues",
    "connect",
    "evaluate",
    "fit",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]
