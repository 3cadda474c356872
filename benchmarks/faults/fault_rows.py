"""What became of cells of the table of faults: kept as CSV, and as a page."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import (
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
)

from phases import BEFORE, PHASES


@dataclasses.dataclass
class Row:
    """What became of a cell."""

    fault: str
    phase: str
    processes: int
    workers: int
    statuses: str
    sentence: str
    checkpoint: str
    resume: str
    outlived: float
    wrong: str

    @property
    def key(self) -> Tuple[str, ...]:
        """What names the cell."""
        return self.fault, self.phase, str(self.processes), str(self.workers)


def keep(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def kept(path: Optional[Path]) -> Dict[Tuple[str, ...], Row]:
    """Return the rows of a file, if there is one, by what names their cells."""
    if path is None or not path.exists():
        return {}
    with path.open(newline="") as stream:
        rows = [Row(**values) for values in csv.DictReader(stream)]  # type: ignore[arg-type]
    return {row.key: row for row in rows}


def page(rows: Sequence[Row], cells: int) -> str:
    """Return a page of Markdown: faults by phases, and what is said."""
    by_fault: Dict[str, List[Row]] = {}
    for row in rows:
        by_fault.setdefault(row.fault, []).append(row)
    phases = [phase for phase in (BEFORE, *PHASES) if any(row.phase == phase for row in rows)]
    right = sum(not row.wrong for row in rows)
    lines = [
        "# Faults, as injected",
        "",
        "Made by `python benchmarks/faults/fault_table.py --csv docs/fault_table.csv` and then "
        "`--page docs/fault_table.md` (`--missing --shuffle 7` fills it in pieces); the program's "
        "first lines say what a cell is and what is asked of it. Under each phase: cells as they "
        "should be, of how many (numbers of processes and of data workers). All rows are in "
        "[fault_table.csv](fault_table.csv).",
        "",
        f"**{right} of the {len(rows)} cells that were run are as they should be**; there are "
        f"{cells}, which take some two hours of one core.",
        "",
        f"| fault | {' | '.join(phases)} | statuses | what is said |",
        f"|---|{'---|' * len(phases)}---|---|",
    ]
    for name, some in by_fault.items():
        counts = [_count([row for row in some if row.phase == phase]) for phase in phases]
        statuses = sorted({word for row in some for word in row.statuses.split()}, key=int)
        sentence = max((row.sentence for row in some), key=len)
        lines.append(
            f"| {_cell(name)} | {' | '.join(counts)} | {', '.join(statuses)} "
            f"| {_cell(_code(sentence)) if sentence else ''} |"
        )
    wrong = [row for row in rows if row.wrong]
    if wrong:
        lines += ["", "Not as they should be:", ""]
    lines += [
        f"- {row.fault}, {row.phase}, {row.processes} processes, {row.workers} workers: "
        f"{_code(row.wrong)}"
        for row in wrong
    ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Return a text as Markdown shows it unchanged; it may have backticks of its own."""
    return f"``{text}``" if "`" in text else f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _count(rows: Sequence[Row]) -> str:
    return f"{sum(not row.wrong for row in rows)}/{len(rows)}" if rows else "–"
