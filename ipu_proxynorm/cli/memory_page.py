"""The HTML page of ``run_ipu.py memory``: verdicts, advice, tables, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Mapping, Sequence, Tuple

from ipu_proxynorm.cli import reporting
from ipu_proxynorm.config import RunConfig, dump
from ipu_proxynorm.memory import Prediction
from ipu_proxynorm.memory.table import rows, sentence

if TYPE_CHECKING:  # drawing needs matplotlib, which csv and json do without
    from matplotlib.figure import Figure

    from ipu_proxynorm.report.html import HtmlTable, Report

#: A caption and cells, the head first.
Cells = Tuple[str, Sequence[Sequence[str]]]


def page(
    config: RunConfig,
    predictions: Mapping[str, Prediction],
    tables: Sequence[Cells],
    figures: Mapping[str, Figure],
) -> Report:
    """Return the page.

    Args:
        config: of the run.
        predictions: by norm.
        tables: besides each prediction's own: norms side by side, sweeps, what is largest.
        figures: by name.
    """
    from ipu_proxynorm.report.figure import svg
    from ipu_proxynorm.report.html import Report, Section

    sections = [
        Section(
            f"{norm}: {prediction.verdict.name}",
            text=[sentence(prediction), *map(str, prediction.advice)],
            tables=[html_table(("MiB on each IPU of a replica", rows(prediction)))],
        )
        for norm, prediction in predictions.items()
    ]
    panels = [svg(figure, f"{config.name}: {name}") for name, figure in figures.items()]
    sections.append(Section("Pictures", panels=panels))
    sections.append(Section("Tables", tables=list(map(html_table, tables))))
    return Report(
        title=f"Memory of {config.name}",
        text=["By prediction; no IPU has measured it. A program fails where its fullest tile is."],
        command=reporting.command_line(),
        configuration=dump(config),
        versions=reporting.versions(),
        sections=sections,
    )


def html_table(cells: Cells) -> HtmlTable:
    """Return cells as a table of the page."""
    from ipu_proxynorm.report.html import HtmlTable

    caption, (head, *body) = cells
    lines: List[Sequence[str]] = list(body)
    return HtmlTable(caption, head, lines)
