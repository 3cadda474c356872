"""Weights & Biases beside the run's own logs, where ``training.wandb`` names a project."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Dict, Optional, Union

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.training.results import EpochResult, StepResult


def load_wandb(project: Optional[str]) -> Any:
    """Return the module ``wandb`` if ``training.wandb`` names a project; else None.

    Raises:
        UserError: it is not installed.
    """
    if project is None:
        return None
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"training.wandb={project}: Weights & Biases is not installed "
            f"({error}); pip install wandb, or set training.wandb=null"
        ) from error
    return wandb


class WandbTracker:
    """Logs each result of :func:`training.fit` to a project of Weights & Biases.

    Args:
        wandb: the module, see :func:`load_wandb`.
        config: the configuration of the run; its values are shown beside the run.
        folder: the folder of the run, under which wandb keeps its files.
        started: when training first began: a resumed run is the same run there.

    Raises:
        UserError: Weights & Biases cannot be reached, or asks for a key.
    """

    def __init__(self, wandb: Any, config: RunConfig, folder: str, started: str) -> None:
        identity = hashlib.sha256(f"{Path(folder).resolve()} {started}".encode()).hexdigest()
        try:
            self._run = wandb.init(
                project=config.training.wandb,
                name=config.name,
                id=identity[:16],
                resume="allow",
                dir=folder,
                config=dataclasses.asdict(config),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"training.wandb={config.training.wandb}: {reason}; set WANDB_MODE=offline, or "
                f"training.wandb=null"
            ) from error

    def log(self, result: Union[StepResult, EpochResult], step: int) -> None:
        """Log the figures of a step or of an epoch at host call ``step``."""
        self._run.log(figures(result), step=step)

    def close(self, failed: bool = False) -> None:
        """End the run there, too."""
        self._run.finish(exit_code=1 if failed else 0)


def figures(result: Union[StepResult, EpochResult]) -> Dict[str, float]:
    """Return the figures of a result by name, as TensorBoard has them: ``train/loss``."""
    kind = "train" if isinstance(result, StepResult) else "epoch"
    found: Dict[str, float] = {}
    for field in dataclasses.fields(result):
        value: Any = getattr(result, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            values = {**dataclasses.asdict(value), "accuracy": getattr(value, "accuracy", None)}
            found.update({f"{field.name}/{name}": v for name, v in values.items()})
        elif isinstance(value, (int, float)):
            found[f"{kind}/{field.name}"] = float(value)
    return found
