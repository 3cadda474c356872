"""A comparison of norms as files: a page, tables, plots."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Sequence

from ipu_proxynorm.analysis.cells import Sram
from ipu_proxynorm.analysis.comparison import Row, Summary, summarize
from ipu_proxynorm.backend import SIMULATED
from ipu_proxynorm.config import RunConfig, dump
from ipu_proxynorm.prediction.planning import global_batch
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.comparison_tables import (
    COLUMNS,
    CSV_COLUMNS,
    csv_rows,
    curves_of,
    notes,
    points_of,
    table_rows,
    variants_of,
    without_variant,
)

CURVE = "training loss, nats"


def comparison_findings(
    base: RunConfig, rows: Sequence[Row], sram: Sram, left_out: Sequence[str] = ()
) -> findings.Findings:
    """Return a comparison of norms as findings: its page, plots, table and values.

    Args:
        base: the configuration that its runs share.
        rows: one for each run that is done.
        sram: predicted bytes of the fullest IPU.
        left_out: what to say of runs that are not done.
    """
    summaries = summarize(rows)
    columns, cells = without_variant(COLUMNS, table_rows(summaries, sram))
    title = f"Norms compared: {base.model.name} on {base.data.name}"

    def figures() -> Dict[str, Any]:
        return draw(summaries)

    def report() -> Any:
        from ipu_proxynorm.report.html import HtmlTable, Report, Section

        several = any(s.seeds > 1 for s in summaries)
        caption = "Means over seeds ± standard error" if several else "One seed"
        return Report(
            title=title,
            text=[
                f"{epochs_of(base.training.epochs)}, "
                f"{global_batch(base)} images per weight update at "
                f"every micro-batch size; accuracy of the validation images after the last epoch, "
                f"training loss as the mean of the last epoch, time as the median of a weight "
                f"update{' on the simulator' if SIMULATED else ''}, SRAM as predicted for the "
                f"fullest IPU. Seeds set weights and the order of the images.",
                *left_out,
                *notes(summaries),
            ],
            command=findings.command_line(),
            configuration=dump(base),
            versions=findings.versions(),
            sections=[
                *plots(summaries, title),
                Section("Table", tables=[HtmlTable(caption, columns, cells)]),
            ],
        )

    values = {"config": dump(base), "rows": [dataclasses.asdict(row) for row in rows]}
    numbers = csv_rows(summaries, sram)
    return findings.Findings(CSV_COLUMNS, numbers, values, figures, report, title)


def draw(summaries: Sequence[Summary]) -> Dict[str, Any]:
    """Return the plots by file name."""
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


def epochs_of(epochs: int) -> str:
    """Return the length of a run in words."""
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"
