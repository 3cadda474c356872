"""The runs in a folder, as their files say: state, network, norm, result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.directory import CONFIG, METRICS, RunDirectory
from ipu_proxynorm.run.state import read_state


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
    message = ""
    try:
        config = RunDirectory(folder).config()
    except UserError as error:
        message = str(error)
    state = read_state(folder)
    done, last, best, average = 0, None, None, None
    for line in metrics(folder):
        if line.get("kind") == "validation":
            last = line["accuracy"]
            best = last if best is None else max(best, last)
        elif line.get("kind") == "average":
            average = line["accuracy"]
        done = max(done, int(line.get("epoch", 0)))
    return ListedRun(
        name=folder.name,
        state=state.describe() if state else "unknown",
        network=config.model.name if config else "?",
        norm=config.model.norm if config else "?",
        epochs=f"{done}/{config.training.epochs}" if config else f"{done}/?",
        last=last,
        best=best,
        average=average,
        seconds=state.seconds if state else None,
        started=state.started if state else "",
        message=message or (state.message or "" if state else ""),
    )


def metrics(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a run's metrics; one that a full disk or a kill cut short is left out."""
    path = folder / METRICS
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                if isinstance(values, dict):
                    yield values


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
