"""The runs in a folder, as their files say: state, network, norm, result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Iterator, List, Optional

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.directory import CONFIG, METRICS, RunDirectory
from ipu_proxynorm.run.state import Damaged, RunState, is_number, load_state


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """One run as it is listed; accuracies are shares, None where there is none."""

    name: str
    state: str
    network: str
    norm: str
    epochs: str
    last: Optional[float]
    best: Optional[float]
    average: Optional[float]
    seconds: Optional[float]
    started: str
    message: str


def listed_run(folder: Path) -> ListedRun:
    """Return what the files in the folder of a run say."""
    config: Optional[RunConfig] = None
    state: Optional[RunState] = None
    damage = []
    try:
        config = RunDirectory(folder).config()
    except UserError as error:
        damage.append(str(error))
    try:
        state = load_state(folder)
    except Damaged as error:
        damage.append(str(error))
    done = 0
    accuracies: List[float] = []
    average: Optional[float] = None
    try:
        for entry in metrics(folder):
            done = max(done, entry.epoch)
            if entry.kind == "validation":
                accuracies.append(entry.accuracy)
            elif entry.kind == "average":
                average = entry.accuracy
    except Damaged as error:
        damage.append(str(error))
    message = f"damaged: {'; '.join(damage)}" if damage else state.message or "" if state else ""
    return ListedRun(
        name=folder.name,
        state="damaged" if damage else state.describe() if state else "unknown",
        network=config.model.name if config else "?",
        norm=config.model.norm if config else "?",
        epochs=f"{done}/{config.training.epochs}" if config else f"{done}/?",
        last=accuracies[-1] if accuracies else None,
        best=max(accuracies, default=None),
        average=average,
        seconds=state.seconds if state else None,
        started=state.started if state else "",
        message=message,
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the list of runs reads of a line of metrics.

    Raises:
        Damaged: a value is not what it should be.
    """

    kind: str
    epoch: int
    accuracy: float

    def __post_init__(self) -> None:
        if self.kind not in ("train", "validation", "average"):
            raise Damaged("kind is not train, validation or average")
        if not isinstance(self.epoch, int) or not is_number(self.epoch, 1):
            raise Damaged("epoch is not a number from 1 up")
        if not is_number(self.accuracy, 0, 1):
            raise Damaged("accuracy is not a number from 0 to 1")


def metrics(folder: Path) -> Iterator[Entry]:
    """Yield the lines of a run's metrics, without a last one that a kill or a full disk cut short.

    Raises:
        Damaged: a line is not one that this program writes; names it.
    """
    path = folder / METRICS
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, 1):
                if line.endswith("\n"):
                    yield _entry(number, line)
    except OSError as error:
        raise Damaged(f"{METRICS} cannot be read ({error.strerror})") from error


def _entry(number: int, line: str) -> Entry:
    try:
        values = json.loads(line)
        return Entry(*(values[field.name] for field in dataclasses.fields(Entry)))
    except Damaged as error:
        raise Damaged(f"{METRICS}, line {number}: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{METRICS}, line {number} is not a record with its fields") from error


def list_runs(folder: Path) -> List[ListedRun]:
    """Return the runs in a folder, the newest last.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"DIR {str(folder)!r}: no such folder; expected one that holds runs, e.g. runs"
        )
    return sorted(
        (listed_run(path.parent) for path in folder.glob(f"*/{CONFIG}")),
        key=lambda found: (found.started, found.name),
    )
