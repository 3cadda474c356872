"""The folder of a run: configuration, metrics and checkpoints, each under a fixed name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, List, Mapping, Union

from torch.utils.tensorboard import SummaryWriter

from ipu_proxynorm.config import RunConfig, dump, load
from ipu_proxynorm.errors import UserError

CONFIG, METRICS, TENSORBOARD = "config.yaml", "metrics.jsonl", "tensorboard"
CHECKPOINTS = ("last", "best")


class RunDirectory:
    """``runs/<name>/``: ``config.yaml``, ``metrics.jsonl``, ``tensorboard/`` and checkpoints."""

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        self._writer: Any = None

    @classmethod
    def create(cls, config: RunConfig, overwrite: bool = False) -> RunDirectory:
        """Make the folder of a new run and write its resolved configuration.

        Raises:
            UserError: the folder holds a run already and ``overwrite`` is False, or it cannot
                be written.
        """
        directory = cls(Path(config.runs, config.name))
        taken = directory._contents()
        if taken and not overwrite:
            raise UserError(
                f"name={config.name}: {str(directory.path)!r} already holds a run "
                f"({', '.join(taken)}); choose another name=..., or pass --overwrite"
            )
        try:
            for name in taken:
                target = directory.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            directory.path.mkdir(parents=True, exist_ok=True)
            (directory.path / CONFIG).write_text(dump(config), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"runs={config.runs}: {str(directory.path)!r} cannot be written "
                f"({error.strerror}); choose another folder with runs=FOLDER"
            ) from error
        return directory

    def _contents(self) -> List[str]:
        """Return which of a run's own files are there; nothing else is ever removed."""
        names = [CONFIG, METRICS, TENSORBOARD, *(f"{name}.pt" for name in CHECKPOINTS)]
        return [name for name in names if (self.path / name).exists()]

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint ``last`` or ``best``."""
        return self.path / f"{name}.pt"

    def config(self) -> RunConfig:
        """Read the run's resolved configuration.

        Raises:
            UserError: the folder is not a run's.
        """
        if not (self.path / CONFIG).is_file():
            raise UserError(
                f"RUN_DIR {str(self.path)!r}: no {CONFIG} in it; expected the folder of a run, "
                f"e.g. runs/quickstart"
            )
        return load(self.path / CONFIG)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, and its numbers to TensorBoard as ``kind/name``."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._writer is None:
            self._writer = SummaryWriter(str(self.path / TENSORBOARD))
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
