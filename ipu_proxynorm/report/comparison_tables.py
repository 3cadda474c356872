"""A comparison of norms in figures: table, points of the plots, and remarks."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from ipu_proxynorm.analysis.cells import Sram
from ipu_proxynorm.analysis.comparison import Cell, Mean, Summary

COLUMNS = (
    "norm",
    "micro-batch",
    "variant",
    "seeds",
    "validation accuracy, %",
    "training loss, nats",
    "time per step, ms",
    "predicted SRAM, MiB",
)


#: Of the CSV file: numbers alone, empty where there is none.
CSV_COLUMNS = (
    *COLUMNS[:4],
    "diverged",
    COLUMNS[4],
    "its standard error, %",
    COLUMNS[5],
    "its standard error, nats",
    COLUMNS[6],
    "its standard error, ms",
    COLUMNS[7],
    "why undefined",
)


def table_rows(summaries: Sequence[Summary], sram: Sram) -> List[Tuple[str, ...]]:
    """Return the cells of the table as text, by `COLUMNS`."""
    rows = []
    for s in summaries:
        predicted = sram.get((s.norm, s.micro_batch, s.variant))
        figures: Tuple[str, ...] = ("undefined", "-", "-", "-")
        if not s.undefined:
            figures = (
                plus_minus(s.accuracy, 100, 2),
                plus_minus(s.loss, 1, 4) + (f" ({len(s.diverged)} diverged)" if s.diverged else ""),
                plus_minus(s.seconds_per_step, 1000, 0),
                "-" if predicted is None else f"{predicted / 2**20:.1f}",
            )
        rows.append((s.norm, str(s.micro_batch), s.variant or "-", str(s.seeds), *figures))
    return rows


def plus_minus(mean: Optional[Mean], scale: float, digits: int) -> str:
    """Return ``98.61 ± 0.16``, without the error where there is but one value."""
    if mean is None:
        return "-"
    error = "" if mean.error is None else f" ± {mean.error * scale:.{digits}f}"
    return f"{mean.mean * scale:.{digits}f}{error}"


def csv_rows(summaries: Sequence[Summary], sram: Sram) -> List[Tuple[Any, ...]]:
    """Return the table as numbers, by `CSV_COLUMNS`."""

    def pair(mean: Optional[Mean], scale: float) -> Tuple[Optional[float], Optional[float]]:
        if mean is None:
            return None, None
        return mean.mean * scale, None if mean.error is None else mean.error * scale

    rows: List[Tuple[Any, ...]] = []
    for s in summaries:
        predicted = sram.get((s.norm, s.micro_batch, s.variant))
        rows.append(
            (
                *(s.norm, s.micro_batch, s.variant, s.seeds, len(s.diverged)),
                *(*pair(s.accuracy, 100), *pair(s.loss, 1), *pair(s.seconds_per_step, 1000)),
                *(None if predicted is None else predicted / 2**20, s.undefined),
            )
        )
    return rows


def without_variant(
    columns: Sequence[str], rows: Sequence[Tuple[str, ...]]
) -> Tuple[Sequence[str], Sequence[Tuple[str, ...]]]:
    """Return the table without the column of variants where there are none."""
    place = COLUMNS.index("variant")
    if any(row[place] != "-" for row in rows):
        return columns, rows
    short = [tuple(row[:place] + row[place + 1 :]) for row in (tuple(columns), *rows)]
    return short[0], short[1:]


def notes(summaries: Sequence[Summary]) -> List[str]:
    """Return, a sentence each, what norms have of their own, why undefined, why runs diverged."""
    own = dict.fromkeys(f"{s.norm} alone: {', '.join(s.own)}." for s in summaries if s.own)
    undefined = dict.fromkeys(s.undefined for s in summaries if s.undefined)
    diverged = [
        f"{', '.join(part for part in (s.norm, s.variant) if part)} at micro-batch "
        f"{s.micro_batch}, seed {seed}, diverged: {why}"
        for s in summaries
        for seed, why in s.diverged
    ]
    counted = "Its accuracy, of the network as it was left, counts in the mean; its loss does not."
    return [*own, *undefined, *diverged, *([counted] if diverged else [])]


def missing_runs(cells: Sequence[Cell]) -> List[str]:
    """Return, as a sentence, which runs are not done; none if all are."""
    if not cells:
        return []
    seeds: Dict[Tuple[str, str], List[str]] = {}
    for cell in cells:
        what = f"{cell.norm} at micro-batch {cell.micro_batch}"
        seeds.setdefault((what, cell.variant), []).append(str(cell.seed))
    listed = "; ".join(
        f"{what}{f', {variant}' if variant else ''}: seed{'s' * (len(found) > 1)} "
        f"{', '.join(found)}"
        for (what, variant), found in seeds.items()
    )
    return [f"Not done, {len(cells)} runs: {listed}."]


def variants_of(summaries: Sequence[Summary]) -> List[str]:
    """Return the variants in order."""
    return list(dict.fromkeys(s.variant for s in summaries))


def points_of(
    summaries: Sequence[Summary],
) -> Dict[str, Dict[str, List[Tuple[int, float, Optional[float]]]]]:
    """Return micro-batch, accuracy and standard error in percent, by variant and norm.

    Variants of which nothing ran are left out.
    """
    result: Dict[str, Dict[str, List[Tuple[int, float, Optional[float]]]]] = {}
    for s in summaries:
        points = result.setdefault(s.variant, {}).setdefault(s.norm, [])
        if s.accuracy is not None:
            error = None if s.accuracy.error is None else 100 * s.accuracy.error
            points.append((s.micro_batch, 100 * s.accuracy.mean, error))
    return {variant: norms for variant, norms in result.items() if any(norms.values())}


def curves_of(
    summaries: Sequence[Summary], variant: str
) -> Dict[int, Dict[str, List[Tuple[float, Optional[float]]]]]:
    """Return the training loss over the epochs, by micro-batch size and norm."""
    result: Dict[int, Dict[str, List[Tuple[float, Optional[float]]]]] = {}
    for s in summaries:
        if s.variant == variant and s.losses:
            result.setdefault(s.micro_batch, {})[s.norm] = list(s.losses)
    return dict(sorted(result.items()))
