"""The power decomposition over depth as files: a page, a table of all layers, plots."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ipu_proxynorm.analysis import POWERS, Power
from ipu_proxynorm.config import RunConfig, dump
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.proxy_tables import (
    DISTANCE_COLUMNS,
    EXPLANATION,
    Distances,
    distance_rows,
)

COLUMNS = ("norm", "number", "layer", *POWERS, "sum", "mean power", "instances")


#: Of the short table, on the terminal and at the head of the page.
EXCERPT = ("norm", "layer", "P1", "P2", "P3", "P4", "mean power")


#: For each curve of the plots its power after each normalization, by layer.
Result = Dict[str, Dict[str, Power]]


def labels(folders: Sequence[str], configs: Sequence[RunConfig]) -> List[str]:
    """Return a name of its own for each run: its norm, and what tells it from others of that."""
    norms = [config.model.norm for config in configs]
    ends = [Path(folder).resolve().name for folder in folders]
    return [
        norm if norms.count(norm) == 1 else f"{norm} ({end if ends.count(end) == 1 else folder})"
        for norm, end, folder in zip(norms, ends, folders)
    ]


def excerpt(result: Result) -> List[Tuple[str, ...]]:
    """Return the first, the middle and the last normalization of each norm, by `EXCERPT`."""
    rows = []
    for norm, found in result.items():
        layers = list(found)
        for place in sorted({0, len(layers) // 2, len(layers) - 1}):
            power = found[layers[place]]
            values = [getattr(power, name) for name in (*POWERS, "mean_power")]
            figures = [f"{value:.4f}" for value in values]
            rows.append((norm, f"{layers[place]} ({place + 1})", *figures))
    return rows


def table_rows(result: Result) -> List[Tuple[Any, ...]]:
    """Return every normalization of every norm as a row, by `COLUMNS`."""
    return [
        (norm, number, layer, p.p1, p.p2, p.p3, p.p4, p.total, p.mean_power, p.instances)
        for norm, found in result.items()
        for number, (layer, p) in enumerate(found.items(), start=1)
    ]


def power_findings(
    config: RunConfig, result: Result, distances: Optional[Distances] = None
) -> findings.Findings:
    """Return the power after each normalization as findings: its page, plots, table and values.

    Args:
        config: the configuration of the network.
        result: the network's power under each norm, or the power of each run.
        distances: of those with Proxy Norm, how far channels are from their proxies.
    """
    curves: Mapping[str, Mapping[str, Sequence[float]]] = {
        norm: {name: [getattr(p, name) for p in found.values()] for name in POWERS}
        for norm, found in result.items()
    }
    rows = table_rows(result)

    def figures() -> Dict[str, Any]:
        from ipu_proxynorm.report.power import combined

        return {"power": combined(curves)}

    def report() -> Any:
        return page(config, result, curves, distances or {})

    values = {
        "config": dump(config),
        "power": {
            norm: {layer: dataclasses.asdict(power) for layer, power in found.items()}
            for norm, found in result.items()
        },
        "proxies": {
            norm: {layer: dataclasses.asdict(distance) for layer, distance in found.items()}
            for norm, found in (distances or {}).items()
        },
    }
    return findings.Findings(
        COLUMNS, rows, values, figures, report, title_of(config.model.name, config.data.name)
    )


def title_of(network: str, dataset: str) -> str:
    """Return the heading of page and plots."""
    return f"Power after each normalization: {network} on {dataset}"


def page(
    config: RunConfig,
    result: Result,
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    distances: Distances,
) -> Any:
    """Return the page, drawn now.

    Args:
        config: the configuration of the network.
        result: its power under each norm, or that of each run.
        curves: the same by power, over depth.
        distances: of those with Proxy Norm, how far channels are from their proxies.
    """
    from ipu_proxynorm.report.html import HtmlTable, Report, Section
    from ipu_proxynorm.report.power import panels

    text = [[v if isinstance(v, str) else f"{v:.6g}" for v in row] for row in table_rows(result)]
    return Report(
        title=title_of(config.model.name, config.data.name),
        text=[
            "μ and σ are the mean and the standard deviation over space of one channel of one "
            "image, after normalization and before scale, shift and activation. Means E and "
            "variances Var are over images; powers are means over channels. The four sum to "
            "the mean power of the tensor, which is 1 after normalization."
        ],
        command=findings.command_line(),
        configuration=dump(config),
        versions=findings.versions(),
        sections=[
            Section(
                "Over depth",
                norms=list(curves),
                panels=panels(curves, title_of(config.model.name, config.data.name)),
            ),
            Section(
                "Figures",
                tables=[
                    HtmlTable("First, middle and last normalization", EXCERPT, excerpt(result)),
                    HtmlTable(
                        f"Every normalization, in order of depth ({len(text)} rows)",
                        [name.upper() if name in POWERS else name for name in COLUMNS],
                        text,
                        folded=True,
                    ),
                ],
            ),
            *proxies_section(distances),
        ],
    )


def proxies_section(distances: Distances) -> List[Any]:
    """Return the page's section about channels and proxies; none without Proxy Norm."""
    from ipu_proxynorm.report.html import HtmlTable, Section

    if not distances:
        return []
    rows = distance_rows(distances)
    caption = f"Channels and proxies, in order of depth ({len(rows)} rows)"
    table = HtmlTable(caption, DISTANCE_COLUMNS, rows, folded=len(rows) > 30)
    return [Section("Distance from the proxy", text=EXPLANATION, tables=[table])]
