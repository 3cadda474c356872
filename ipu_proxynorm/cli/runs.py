"""``ipu-proxynorm runs [DIR]``: the runs in a folder, with state and result."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any, List, Mapping, Optional

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ipu_proxynorm.run.listing import ListedRun, list_runs


def add_parser(subparsers: Any) -> None:
    """Add ``runs`` to the sub-commands."""
    parser = subparsers.add_parser(
        "runs",
        help="list runs with their state, norm and result",
        description="List the runs in a folder: state, network, norm, accuracy and duration.",
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="default: runs")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Print a table of the runs, the newest last, and why those that failed did."""
    folder = Path(arguments.folder)
    rows = list_runs(folder)
    if not rows:
        console.print(f"no runs in {folder} (train CONFIG makes one)")
        return
    listing = fitting(rows, console)
    if not console.is_terminal:
        console.width = max(console.width, natural_width(listing, console))
    console.print(listing)
    for found in rows:
        if found.message:
            console.print(f"{found.name}: {found.message}")


#: Columns that a narrow terminal does without, the first first.
SPARED = ("started", "network", "average", "best")


def fitting(rows: List[ListedRun], console: Console) -> Table:
    """Return the runs as a table that the terminal has room for, if need be with fewer columns."""
    columns = {
        "run": [found.name for found in rows],
        "state": [found.state for found in rows],
        "network": [found.network for found in rows],
        "norm": [found.norm for found in rows],
        "epoch": [found.epochs for found in rows],
        "accuracy": [share(found.last) for found in rows],
        "best": [share(found.best) for found in rows],
        "average": [share(found.average) for found in rows],
        "duration": [duration(found.seconds) for found in rows],
        "started": [moment(found.started) for found in rows],
    }
    if all(found.average is None for found in rows):
        del columns["average"]
    for spared in SPARED:
        # A file or a pipe has room for all of them.
        if not console.is_terminal or natural_width(table(columns), console) <= console.width:
            break
        columns.pop(spared, None)
    return table(columns)


def table(columns: Mapping[str, List[str]]) -> Table:
    """Return columns by name as a table."""
    result = Table(*columns)
    for row in zip(*columns.values()):
        result.add_row(*row)
    return result


def natural_width(listing: Table, console: Console) -> int:
    """Return how wide a table is where there is room for all of it."""
    return Measurement.get(console, console.options.update(max_width=1000), listing).maximum


def moment(started: str) -> str:
    """Return an ISO 8601 time as this machine's clock had it, to the minute."""
    if not started:
        return "-"
    return datetime.datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")


def share(value: Optional[float]) -> str:
    """Return a share in per cent."""
    return "-" if value is None else f"{value:.2%}"


def duration(seconds: Optional[float]) -> str:
    """Return a duration as hours, minutes and seconds."""
    return "-" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
