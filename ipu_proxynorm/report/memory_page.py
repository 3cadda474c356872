"""A run's predicted memory as files: a page of verdicts, advice and tables, and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Mapping

from ipu_proxynorm.config import RunConfig, dump
from ipu_proxynorm.memory import TERMS, Prediction, find_chip
from ipu_proxynorm.memory.table import rows as cells
from ipu_proxynorm.memory.table import sentence
from ipu_proxynorm.memory.timeline import timelines
from ipu_proxynorm.prediction.sweep import Sweep, fullest
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.memory_tables import all_budgets, further_tables, values_of

if TYPE_CHECKING:  # drawing needs matplotlib, which csv and json do without
    from matplotlib.figure import Figure

    from ipu_proxynorm.report.html import Report


def memory_findings(
    config: RunConfig, predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]
) -> findings.Findings:
    """Return a run's predicted memory as findings: its page, plots, table and values.

    Args:
        config: the run's configuration.
        predictions: the prediction under each norm.
        sweeps: under each norm, the predictions by micro-batch; may be empty.
    """

    def figures() -> Dict[str, Figure]:
        return draw(config, predictions, sweeps)

    def report() -> Report:
        return page(config, predictions, sweeps, figures())

    columns = ("norm", "micro_batch", "ipu", *TERMS, "used", "capacity")
    rows = [
        [norm, micro_batch, b.ipu, *(b.terms[term] for term in TERMS), b.used, b.capacity]
        for norm, micro_batch, b in all_budgets(predictions, sweeps)
    ]
    return findings.Findings(columns, rows, values_of(predictions, sweeps), figures, report)


def page(
    config: RunConfig,
    predictions: Mapping[str, Prediction],
    sweeps: Mapping[str, Sweep],
    figures: Mapping[str, Figure],
) -> Report:
    """Return the page.

    Args:
        config: the configuration of the run.
        predictions: by norm.
        sweeps: over the micro-batch, by norm; may be empty.
        figures: by name.
    """
    from ipu_proxynorm.report.figure import svg
    from ipu_proxynorm.report.html import Report, Section, html_table

    sections = [
        Section(
            f"{norm}: {prediction.verdict.name}",
            text=[sentence(prediction), *map(str, prediction.advice)],
        )
        for norm, prediction in predictions.items()
    ]
    panels = [svg(figure, f"{config.name}: {name}") for name, figure in figures.items()]
    sections.append(Section("Pictures", panels=panels))
    tables = [
        html_table(f"{norm}: MiB on each IPU of a replica", cells(prediction))
        for norm, prediction in predictions.items()
    ]
    tables += [html_table(*table) for table in further_tables(predictions, sweeps)]
    sections.append(Section("Tables", tables=tables))
    return Report(
        title=f"Memory of {config.name}",
        text=["By prediction; no IPU has measured it. A program fails where its fullest tile is."],
        command=findings.command_line(),
        configuration=dump(config),
        versions=findings.versions(),
        sections=sections,
    )


def draw(
    config: RunConfig, predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]
) -> Dict[str, Figure]:
    """Return the pictures by file name."""
    import ipu_proxynorm.report.figure  # noqa: F401  says what to install where it is missing
    from ipu_proxynorm.report.memory import bars, by_micro_batch, over_time

    norm, first = next(iter(predictions.items()))
    what = f"{config.model.name} ({norm}), micro-batch {first.capture.micro_batch}"
    capacity = find_chip(config.ipu.chip).sram_bytes
    figures = {
        "ipus": bars([(f"IPU {b.ipu}", b) for b in first.ipus], f"{what}: memory of each IPU"),
        "time": over_time(timelines(first), capacity, f"{what}: over one weight update"),
    }
    if len(predictions) > 1:
        budgets = [(name, fullest(p.ipus)) for name, p in predictions.items()]
        title = f"{config.model.name}, micro-batch {first.capture.micro_batch}: the fullest IPU"
        figures["norms"] = bars(budgets, title)
    if sweeps:
        lines = {name: [(at, b.used) for at, b in points] for name, points in sweeps.items()}
        figures["micro_batch"] = by_micro_batch(lines, capacity, f"{config.model.name}")
    return figures
