"""Training and validation of a configured run."""

from ipu_proxynorm.training.loop import fit
from ipu_proxynorm.training.results import EpochResult, StepResult
from ipu_proxynorm.training.resume import check_continues
from ipu_proxynorm.training.validation import Evaluation, Validator, evaluate

__all__ = [
    "EpochResult",
    "Evaluation",
    "StepResult",
    "Validator",
    "check_continues",
    "evaluate",
    "fit",
]
