"""Checkpoints: written whole or not at all, read without executing what they contain."""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, Dict, Mapping

import torch
from torch import Tensor

from ipu_proxynorm.errors import UserError

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network's weights after an epoch, and the configuration (YAML) that they belong to."""

    epoch: int
    validation_accuracy: float
    config: str
    weights: Mapping[str, Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint``; ``path`` holds the old or the new one at every instant.

    Raises:
        UserError: the file cannot be written.
    """
    content: Dict[str, Any] = {"format": FORMAT, **vars(checkpoint)}
    # Plain tensors: the wrapped model's belong to classes that only exist while it trains.
    content["weights"] = {
        name: tensor.detach().as_subclass(Tensor).clone()
        for name, tensor in checkpoint.weights.items()
    }
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"checkpoint {str(path)!r} cannot be written ({error.strerror}); free the disk or "
            f"choose another folder with runs=FOLDER"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing but tensors and plain values is unpickled.

    Raises:
        UserError: there is none, it is damaged, or another program wrote it.
    """
    if not path.is_file():
        raise UserError(
            f"{str(path)!r}: no such checkpoint; expected a run that finished an epoch "
            f"(run_ipu.py train CONFIG writes it)"
        )
    fix = "use another checkpoint of the run, or train again"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # checks every part against its checksum
        if damaged is not None:
            raise UserError(f"checkpoint {str(path)!r} is damaged (in {damaged!r}); {fix}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"checkpoint {str(path)!r} is truncated, damaged or not a checkpoint ({first}); {fix}"
        ) from error
    names = [field.name for field in dataclasses.fields(Checkpoint)]
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {str(path)!r}: expected format {FORMAT} of this program; {fix}"
        )
    return Checkpoint(**{name: content[name] for name in names})
