"""Plots of a comparison: accuracy against micro-batch size, and training curves."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Tuple

from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from ipu_proxynorm.report.figure import Axes, Figure, finish, legend, new_figure
from ipu_proxynorm.report.style import norm_style

#: For each norm: (micro-batch size, mean in percent, standard error in percent or None).
Points = Mapping[str, Sequence[Tuple[int, float, Optional[float]]]]
#: For each norm: (epochs, loss).
Curves = Mapping[str, Sequence[Tuple[float, Optional[float]]]]
#: Where accuracies spread over more points than this, the highest are shown enlarged as well.
WIDE, ENLARGED = 20.0, 12.0


def zooms(variants: Sequence[Points]) -> List[Optional[float]]:
    """Return the panels that accuracies need: None for all, a lower end in percent for the top."""
    means = [mean for points in variants for values in points.values() for _, mean, _ in values]
    if means and max(means) - min(means) > WIDE:
        return [None, max(means) - ENLARGED]
    return [None]


def accuracy_figure(variants: Mapping[str, Points]) -> Figure:
    """Return validation accuracy against micro-batch size, a row a variant, a column a zoom."""
    views = zooms(list(variants.values()))
    figure, axes = new_figure(len(variants), len(views))
    for column, zoom in enumerate(views):
        drawn = axes[column :: len(views)]
        for ax, (variant, points) in zip(drawn, variants.items()):
            accuracy_axes(ax, points, variant, zoom)
        share_scale(drawn)
    legend(figure, 3 * len(views))
    return figure


def share_scale(panels: Sequence[Axes]) -> None:
    """Give panels the same vertical axis, the one that shows all of them."""
    limits = [ax.get_ylim() for ax in panels]
    for ax in panels:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def accuracy_axes(ax: Axes, points: Points, variant: str, zoom: Optional[float] = None) -> None:
    """Draw one panel: means with standard errors, side by side where they would overlap.

    Args:
        ax: where to.
        points: what.
        variant: for the title.
        zoom: lower end of the axis, percent; None: all is shown.

    """
    sizes = sorted({size for values in points.values() for size, _, _ in values})
    for place, (norm, values) in enumerate(points.items()):
        style = norm_style(norm)
        shift = 1 + 0.035 * (place - (len(points) - 1) / 2)
        ordered = sorted(values)
        errors = [error or 0.0 for _, _, error in ordered]
        line = ax.errorbar(
            [size * shift for size, _, _ in ordered],
            [mean for _, mean, _ in ordered],
            yerr=errors,
            color=style.colour.light,
            marker=style.marker,
            capsize=2.5,
            elinewidth=1,
            label=norm,
        )
        if style.dashes:
            line[0].set_dashes(style.dashes)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([str(size) for size in sizes])
    if zoom is not None:
        ax.set_ylim(bottom=zoom)
    parts = ("accuracy", variant, "the best enlarged" if zoom is not None else "")
    title = ", ".join(part for part in parts if part)
    finish(ax, title, "micro-batch size, images", "validation accuracy, %")


def curves_figure(by_size: Mapping[int, Curves], name: str) -> Figure:
    """Return training curves, one panel a micro-batch size, on a common logarithmic scale."""
    figure, axes = new_figure(1, len(by_size), (3.4, 3.0))
    for ax, (size, curves) in zip(axes, sorted(by_size.items())):
        curves_axes(ax, curves, f"micro-batch {size}", name)
    share_scale(axes)
    legend(figure, min(6, 2 * len(by_size)))
    return figure


def curves_axes(ax: Axes, curves: Curves, title: str, name: str) -> None:
    """Draw one panel of training curves."""
    for norm, values in curves.items():
        style = norm_style(norm)
        dashes: Any = {"dashes": style.dashes} if style.dashes else {}
        ax.plot(
            [at for at, _ in values],
            [float("nan") if loss is None else loss for _, loss in values],
            color=style.colour.light,
            marker=style.marker,
            markevery=max(1, len(values) // 6),
            label=norm,
            **dashes,
        )
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    finish(ax, title, "epochs", name)
