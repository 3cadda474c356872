"""What ``compare`` shows of its rows: the table, the plots, the page, and predicted memory."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from rich.console import Console
from rich.table import Table

from ipu_proxynorm.analysis.comparison import UNDEFINED, Cell, Mean, Row, Summary, summarize
from ipu_proxynorm.backend import SIMULATED
from ipu_proxynorm.cli import reporting
from ipu_proxynorm.config import RunConfig, dump
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.memory import predict
from ipu_proxynorm.run.mixing import draw
from ipu_proxynorm.run.run import build

#: Predicted bytes on the fullest IPU, by norm, micro-batch and variant.
Sram = Dict[Tuple[str, int, str], int]

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


def predicted_sram(
    configs: Mapping[Cell, RunConfig], rows: Sequence[Row], console: Console
) -> Sram:
    """Predict the memory of every norm, micro-batch and variant once; print why where it cannot."""
    found: Sram = {}
    for row in rows:
        key = (row.norm, row.micro_batch, row.cell.variant)
        if row.status == UNDEFINED or key in found:
            continue
        config = configs[row.cell]
        run = build(config)
        images = torch.zeros(
            row.micro_batch, run.data.channels, *run.data.image_size, dtype=torch.uint8
        )
        labels = torch.zeros(row.micro_batch, dtype=torch.int64)
        mixing = draw(config.training, images.shape, config.seed, 1, 0)
        try:
            prediction = predict(
                run.program,
                training_options(config.ipu, config.seed),
                (images, labels, *mixing),
                optimizer=run.optimizer,
                training=True,
                advise=False,
            )
        except UserError as error:
            console.print(f"{row.cell.name}: memory is not predicted ({error})")
            continue
        found[key] = max(ipu.used for ipu in prediction.ipus)
    return found


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


def table(summaries: Sequence[Summary], sram: Sram) -> Table:
    """Return the comparison as a table of the terminal, no heading cut off."""
    columns, rows = without_variant(COLUMNS, table_rows(summaries, sram))
    result = Table()
    for column in columns:
        words = column.replace("-", "- ").split()
        result.add_column(" ".join(words), min_width=max(map(len, words)), overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def notes(summaries: Sequence[Summary]) -> List[str]:
    """Return, a sentence each, why norms are undefined and why runs diverged."""
    undefined = dict.fromkeys(s.undefined for s in summaries if s.undefined)
    diverged = [
        f"{', '.join(part for part in (s.norm, s.variant) if part)} at micro-batch "
        f"{s.micro_batch}, seed {seed}, diverged: {why}"
        for s in summaries
        for seed, why in s.diverged
    ]
    counted = "Its accuracy, of the network as it was left, counts in the mean; its loss does not."
    return [*undefined, *diverged, *([counted] if diverged else [])]


def findings(base: RunConfig, rows: Sequence[Row], sram: Sram) -> reporting.Findings:
    """Return what to write."""
    summaries = summarize(rows)
    columns, cells = without_variant(COLUMNS, table_rows(summaries, sram))
    title = f"Norms compared: {base.model.name} on {base.data.name}"

    def figures() -> Dict[str, Any]:
        from ipu_proxynorm.report import comparison

        drawn: Dict[str, Any] = {}
        points = points_of(summaries)
        if points:
            drawn["accuracy"] = comparison.accuracy_figure(points)
        for variant in variants_of(summaries):
            name = f"curves-{variant}".rstrip("-").replace(", ", "-")
            curves = curves_of(summaries, variant)
            if curves:
                drawn[name] = comparison.curves_figure(curves, CURVE)
        return drawn

    def report() -> Any:
        from ipu_proxynorm.report.html import HtmlTable, Report, Section

        several = any(s.seeds > 1 for s in summaries)
        caption = "Means over seeds ± standard error" if several else "One seed"
        return Report(
            title=title,
            text=[
                f"{epochs_of(base)}, {global_batch(base)} images per weight update at "
                f"every micro-batch size; accuracy of the validation images after the last epoch, "
                f"training loss as the mean of the last epoch, time as the median of a weight "
                f"update{' on the simulator' if SIMULATED else ''}, SRAM as predicted for the "
                f"fullest IPU. Seeds set weights and the order of the images.",
                *notes(summaries),
            ],
            command=reporting.command_line(),
            configuration=dump(base),
            versions=reporting.versions(),
            sections=[
                *plots(summaries, title),
                Section("Table", tables=[HtmlTable(caption, columns, cells)]),
            ],
        )

    values = {"config": dump(base), "rows": [dataclasses.asdict(row) for row in rows]}
    numbers = csv_rows(summaries, sram)
    return reporting.Findings(CSV_COLUMNS, numbers, values, figures, report, title)


CURVE = "training loss, nats"


def plots(summaries: Sequence[Summary], title: str) -> List[Any]:
    """Return the page's sections with plots, one panel each, so that they fit a phone."""
    from ipu_proxynorm.report import comparison
    from ipu_proxynorm.report.figure import new_figure, svg
    from ipu_proxynorm.report.html import Section

    norms = list(dict.fromkeys(s.norm for s in summaries))
    accuracy, curves, scaled = [], [], []
    for variant, points in points_of(summaries).items():
        for zoom in comparison.zooms([points]):
            figure, (ax,) = new_figure()
            comparison.accuracy_axes(ax, points, variant, zoom)
            name = f"accuracy against micro-batch size {variant}{' (enlarged)' if zoom else ''}"
            accuracy.append(svg(figure, f"{title}: {name}"))
        for size, by_norm in curves_of(summaries, variant).items():
            figure, (ax,) = new_figure()
            heading = ", ".join(part for part in (f"micro-batch {size}", variant) if part)
            comparison.curves_axes(ax, by_norm, heading, CURVE)
            curves.append((figure, f"{title}: training loss, {heading}"))
            scaled.append(ax)
    comparison.share_scale(scaled)
    sections = [
        Section("Accuracy against micro-batch size", norms=norms, panels=accuracy),
        Section("Training curves", norms=norms, panels=[svg(*curve) for curve in curves]),
    ]
    return [section for section in sections if section.panels]


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


def epochs_of(config: RunConfig) -> str:
    """Return the length of a run in words."""
    return f"{config.training.epochs} epoch{'' if config.training.epochs == 1 else 's'}"


def global_batch(config: RunConfig) -> int:
    """Return the images behind one weight update."""
    ipu = config.ipu
    return ipu.micro_batch_size * ipu.replication_factor * ipu.gradient_accumulation
