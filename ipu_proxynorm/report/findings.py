"""What a command found, written in each format: page, plots, table, values."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Sequence

import numpy
import torch

import ipu_proxynorm
from ipu_proxynorm import backend
from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError, unknown_name

if TYPE_CHECKING:  # drawing needs matplotlib, which csv and json do without
    from matplotlib.figure import Figure

    from ipu_proxynorm.report.html import Report

FORMATS = ("html", "png", "svg", "csv", "json")
DRAWN = ("html", "png", "svg")


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a command found, for each format; plots and page are drawn only when asked for.

    Attributes:
        columns: the columns of the table.
        rows: the rows of the table: plain values.
        values: everything, for JSON.
        figures: draws the plots, by file name.
        report: draws the page.
        title: what the plots are of, for those who cannot see them.

    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    values: Dict[str, Any]
    figures: Callable[[], Dict[str, Figure]]
    report: Callable[[], Report]
    title: str = ""


def formats_of(text: str, choices: Sequence[str] = FORMATS) -> List[str]:
    """Return the formats between commas.

    Raises:
        UserError: one is unknown, or there is none.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words or [text]:
        if word not in choices:
            raise unknown_name("--format", word, choices)
    return words


def check_drawing(formats: Sequence[str]) -> None:
    """Check, before anything is computed, that what is drawn of the formats can be.

    Raises:
        UserError: matplotlib or jinja2 is missing; says what to install.
    """
    if set(formats) & set(DRAWN):
        import ipu_proxynorm.report.figure
    if "html" in formats:
        import ipu_proxynorm.report.html  # noqa: F401


def check_writable(folder: Path, option: str = "--out") -> None:
    """Check, before anything is computed, that ``folder`` can be made and written; make nothing.

    Raises:
        UserError: it cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "no permission to write" if existing.is_dir() else "not a folder"
        raise UserError(
            f"{str(folder)!r} cannot be written ({str(existing)!r}: {why}); choose another folder "
            f"with {option}"
        )


def versions() -> Dict[str, str]:
    """Return the version of every program that a result depends on."""
    simulated = " (simulated)" if backend.SIMULATED else ""
    return {
        "ipu-proxynorm": ipu_proxynorm.__version__,
        "poptorch": f"{poptorch.__version__}{simulated}",
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": numpy.__version__,
        "Python": platform.python_version(),
    }


def command_line() -> str:
    """Return the command that this process runs, as one would type it."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def write(
    folder: Path, formats: Sequence[str], findings: Findings, option: str = "--out"
) -> List[Path]:
    """Write the findings into ``folder`` and return the files.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [path for kind in formats for path in _WRITERS[kind](folder, findings)]
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written ({error.strerror}); choose another folder with "
            f"{option}"
        ) from error


def _html(folder: Path, findings: Findings) -> List[Path]:
    from ipu_proxynorm.report.html import render

    path = folder / "report.html"
    path.write_text(render(findings.report()), encoding="utf-8")
    return [path]


def _png(folder: Path, findings: Findings) -> List[Path]:
    from ipu_proxynorm.report.figure import save_png

    paths = []
    for name, figure in findings.figures().items():
        paths.append(folder / f"{name}.png")
        save_png(figure, paths[-1])
    return paths


def _svg(folder: Path, findings: Findings) -> List[Path]:
    from ipu_proxynorm.report.figure import standalone_svg

    paths = []
    for name, figure in findings.figures().items():
        paths.append(folder / f"{name}.svg")
        title = f"{findings.title}: {name}" if findings.title else name
        paths[-1].write_text(standalone_svg(figure, title), encoding="utf-8")
    return paths


def _csv(folder: Path, findings: Findings) -> List[Path]:
    path = folder / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([findings.columns, *findings.rows])
    return [path]


def _json(folder: Path, findings: Findings) -> List[Path]:
    path = folder / "results.json"
    values = {"command": command_line(), "versions": versions(), **findings.values}
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return [path]


_WRITERS = {"html": _html, "png": _png, "svg": _svg, "csv": _csv, "json": _json}
