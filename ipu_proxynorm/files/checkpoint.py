"""Checkpoints: written whole or not at all, read without executing what they contain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import torch
from torch import Tensor

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.exhausted import unwritten
from ipu_proxynorm.files.seal import broken, seal
from ipu_proxynorm.files.torch_file import read_torch
from ipu_proxynorm.files.whole import replacing

FORMAT = 3


@dataclasses.dataclass
class Progress:
    """How far a run is: epochs done, host calls done in the one after them, and their figures.

    ``loss`` and ``accuracy`` are sums over the host calls of the epoch under way.
    """

    epoch: int = 0
    call: int = 0
    step: int = 0
    best_accuracy: float = -1.0
    validation_accuracy: Optional[float] = None
    loss: float = 0.0
    accuracy: float = 0.0

    def __str__(self) -> str:
        within = f", host call {self.call} of epoch {self.epoch + 1}" if self.call else ""
        return f"epoch {self.epoch}{within}"


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """What a run needs, beside its weights, to go on as if it had never stopped.

    The order of the images, their augmentation, the schedules and whatever else the host draws are
    functions of the seed and of the progress: nothing of them is kept.

    Args:
        progress: where the run was.
        optimizer: state dict, the tensors on the IPUs included.
        streams: ``(replicas, n)`` int64, state of each replica's random numbers; None: unknown.
        metrics_bytes: length of the run's metrics file.
        extra: tensors of other parts of the training loop, by name, e.g. averaged weights.
        ways: by name, how sums were rounded, beside what the configuration says; empty: unknown.
        images: digest of the data set; empty: unknown.
    """

    progress: Progress
    optimizer: Mapping[str, Any]
    streams: Optional[Tensor] = None
    metrics_bytes: int = 0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ways: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    images: str = ""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network's weights, the configuration (YAML) that they belong to, and how to go on.

    ``epoch`` counts the epochs done; ``validation_accuracy`` is that after the last validation.
    ``inputs`` describes images and classes, see `run.inputs`; empty: an older program wrote it.
    """

    epoch: int
    validation_accuracy: Optional[float]
    config: str
    weights: Mapping[str, Tensor]
    state: Optional[TrainingState] = None
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def plain(value: Any) -> Any:
    """Return ``value`` with its tensors as plain, contiguous copies on the host."""
    if isinstance(value, Tensor):
        # The wrapped model's belong to classes that only exist while it trains.
        return value.detach().as_subclass(Tensor).to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint``; ``path`` holds the old or the new one at every instant.

    Raises:
        UserError: the file cannot be written.
    """
    content: Dict[str, Any] = plain(checkpoint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            torch.save({"format": FORMAT, "content": content}, stream)
            seal(stream)
    # torch's archive writer turns some of the system's errors into its own.
    except (OSError, RuntimeError) as error:
        raise UserError(unwritten(f"checkpoint {str(path)!r}", error)) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing but tensors and plain values is unpickled.

    Raises:
        UserError: there is none, it is damaged, or another program wrote it; names a good one of
            the same run where there is one.
    """
    if not path.is_file():
        others = sorted(other.stem for other in path.parent.glob("*.pt") if other.is_file())
        raise UserError(
            f"{str(path)!r}: no such checkpoint; "
            + (
                f"there are {', '.join(others)}: use one of them with --checkpoint"
                if others
                else "expected a run that finished an epoch (train CONFIG writes it)"
            )
        )
    try:
        return _read(path)
    except UserError as error:
        raise UserError(f"{error}; {_offer(path)}") from error


def _offer(path: Path) -> str:
    """Say which other checkpoint of the run can be read, the newest first."""
    others = [other for other in path.parent.glob("*.pt") if other != path and other.is_file()]
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
        try:
            checkpoint = _read(other)
        except UserError:
            continue
        progress = checkpoint.state.progress if checkpoint.state else Progress(checkpoint.epoch)
        return f"{str(other)!r} ({progress}) is good: use it with --checkpoint {other.stem}"
    return "use another checkpoint of the run, or train again"


def _read(path: Path) -> Checkpoint:
    try:
        reason = broken(path)
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is not None:
        raise UserError(
            f"checkpoint {str(path)!r} is truncated, damaged or not a checkpoint ({reason})"
        )
    content = read_torch(path, "checkpoint")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {str(path)!r}: expected format {FORMAT}, which this version of the "
            f"program writes"
        )
    return _checkpoint(content["content"])


def _checkpoint(values: Dict[str, Any]) -> Checkpoint:
    """Return the checkpoint that :func:`plain` took apart."""
    state = values["state"]
    if state is not None:
        state = TrainingState(**{**state, "progress": Progress(**state["progress"])})
    return Checkpoint(**{**values, "state": state})
