"""Training and validation of a configured run, and what it leaves on disk."""

from ipu_proxynorm.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ipu_proxynorm.training.loop import EpochResult, StepResult, fit
from ipu_proxynorm.training.run import Run, build, load_weights
from ipu_proxynorm.training.run_directory import RunDirectory
from ipu_proxynorm.training.validation import Evaluation, Validator, evaluate

__all__ = [
    "Checkpoint",
    "EpochResult",
    "Evaluation",
    "Run",
    "RunDirectory",
    "StepResult",
    "Validator",
    "build",
    "evaluate",
    "fit",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]
