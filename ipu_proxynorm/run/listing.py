"""The runs in a folder, as their files say: state, network, norm, result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import List, Optional

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.directory import CONFIG, RunDirectory
from ipu_proxynorm.run.records import Averaged, Validated, records
from ipu_proxynorm.run.state import Damaged, RunState, load_state


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
        for entry in records(folder):
            done = max(done, entry.epoch)
            if isinstance(entry, Validated):
                accuracies.append(entry.accuracy)
            elif isinstance(entry, Averaged):
                average = entry.accuracy
    except UserError as error:
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
