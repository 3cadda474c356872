"""The four panels of the power decomposition over depth."""

from __future__ import annotations

from typing import Any, List, Mapping, Sequence

from ipu_proxynorm.report.figure import Axes, Figure, finish, legend, new_figure, svg
from ipu_proxynorm.report.style import norm_styles

#: What each power is, as the panels' titles say it.
TITLES = {
    "p1": "P1: (E μ)², the same for all images",
    "p2": "P2: Var μ, between images",
    "p3": "P3: (E σ)², inside an image",
    "p4": "P4: Var σ, between images",
}
#: For each norm, or run of a norm (see `norm_styles`), and each power, its value after each
#: normalization, in order of depth.
Curves = Mapping[str, Mapping[str, Sequence[float]]]


def panels(curves: Curves, title: str) -> List[str]:
    """Return the four panels as ``<svg>`` elements, for an HTML page with a legend of its own."""
    elements = []
    for power in TITLES:
        figure, (ax,) = new_figure()
        _draw(ax, curves, power)
        elements.append(svg(figure, f"{title}: {TITLES[power]}"))
    return elements


def combined(curves: Curves) -> Figure:
    """Return the four panels as one figure, two by two."""
    figure, axes = new_figure(2, 2)
    for ax, power in zip(axes, TITLES):
        _draw(ax, curves, power)
    legend(figure)
    return figure


def _draw(ax: Axes, curves: Curves, power: str) -> None:
    top = 0.0
    styles = norm_styles(curves)
    for norm, values in curves.items():
        style = styles[norm]
        depth = range(1, len(values[power]) + 1)
        dashes: Any = {"dashes": style.dashes} if style.dashes else {}
        ax.plot(
            depth,
            values[power],
            color=style.colour.light,
            marker=style.marker,
            markevery=max(1, len(depth) // 8),
            label=norm,
            **dashes,
        )
        top = max(top, *values[power])
    top = max(1.0, top) if power in ("p1", "p3") else 1.2 * max(0.01, top)  # P2, P4: their own
    ax.set_ylim(-0.03 * top, 1.05 * top)
    finish(ax, TITLES[power], "normalization, in order of depth", "power (normalized: sum 1)")
