"""A run's planned layouts as files: a page of the choice with its reasons, tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Mapping

from ipu_proxynorm.config import dump
from ipu_proxynorm.memory import AT_TWICE_THE_LARGEST, FALSE_FITS, SAFE
from ipu_proxynorm.memory.table import rows as memory_rows
from ipu_proxynorm.memory.table import speed
from ipu_proxynorm.prediction.planning import RunPlan, planned_config, reasons
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.plan_tables import (
    COLUMNS,
    named_plans,
    plan_rows,
    plan_values,
    stage_rows,
    values_of,
)

if TYPE_CHECKING:  # drawing needs matplotlib, which csv and json do without
    from matplotlib.figure import Figure

    from ipu_proxynorm.report.html import Report


def heading(planned: RunPlan) -> str:
    """Return what was planned, in a line."""
    config = planned.config
    return (
        f"{config.name}: {config.model.name} ({config.model.norm}), "
        f"{planned.best.batch.global_batch} images an update on {planned.ipus} IPUs "
        f"({planned.chip}): {planned.plans.considered} layouts considered"
    )


def certainty() -> str:
    """Return what "fits" means here."""
    return (
        f"fits: at most {SAFE:.0%} of an IPU by prediction; of {AT_TWICE_THE_LARGEST} programs at "
        f"twice the largest micro-batch that was published, {FALSE_FITS} were said to fit"
    )


def plan_findings(planned: RunPlan) -> findings.Findings:
    """Return planned layouts as findings: page, plots, table and values."""

    def figures() -> Dict[str, Figure]:
        return draw(planned)

    def report() -> Report:
        return page(planned, figures())

    values = {"config": dump(planned.config), **values_of(planned)}
    title = f"Layouts of {planned.config.name}"
    return findings.Findings(COLUMNS, plan_values(planned), values, figures, report, title)


def page(planned: RunPlan, figures: Mapping[str, Figure]) -> Report:
    """Return the page.

    Args:
        planned: what it is of.
        figures: by name.
    """
    from ipu_proxynorm.report.figure import svg
    from ipu_proxynorm.report.html import Report, Section, html_table

    title = f"Layouts of {planned.config.name}"
    best = planned.best
    panels = [svg(figure, f"{title}: {name}") for name, figure in figures.items()]
    return Report(
        title=title,
        text=[heading(planned), certainty()],
        command=findings.command_line(),
        configuration=dump(planned_config(planned.config, best)),
        versions=findings.versions(),
        sections=[
            Section(
                "Chosen",
                text=[
                    f"{speed(best.prediction.throughput)}; no IPU has measured it",
                    *reasons(planned),
                ],
                panels=panels,
            ),
            Section(
                "Tables",
                tables=[
                    html_table("Layouts side by side", plan_rows(planned)),
                    html_table("Stages of the chosen layout", stage_rows(best)),
                    html_table("MiB on each IPU of a replica", memory_rows(best.prediction)),
                ],
            ),
        ],
    )


def draw(planned: RunPlan) -> Dict[str, Figure]:
    """Return the pictures by file name."""
    import ipu_proxynorm.report.figure  # noqa: F401  says what to install where it is missing
    from ipu_proxynorm.report.memory import bars
    from ipu_proxynorm.report.plan import speeds

    budgets = [(f"IPU {budget.ipu}", budget) for budget in planned.best.prediction.ipus]
    return {
        "speed": speeds(named_plans(planned), "predicted speed of each layout"),
        "ipus": bars(budgets, "the chosen layout: memory of each IPU of a replica"),
    }
