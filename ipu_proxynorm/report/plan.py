"""Pictures of planned layouts: how fast each is predicted to be, with its interval."""

from __future__ import annotations

from typing import Sequence, Tuple

from matplotlib.figure import Figure

from ipu_proxynorm.memory.planner import Plan
from ipu_proxynorm.memory.predict import FITS
from ipu_proxynorm.report.figure import finish, new_figure
from ipu_proxynorm.report.style import INK, SERIES


def speeds(plans: Sequence[Tuple[str, Plan]], title: str) -> Figure:
    """Return bars of images/s, one for each named plan, each with the interval of its prediction.

    Pale: of a plan that is not predicted to fit.
    """
    figure, (ax,) = new_figure(size=(max(5.4, 0.9 * len(plans) + 1.2), 3.9))
    names = [f"{name}\n{plan.batch.stages} x {plan.batch.replicas}" for name, plan in plans]
    values = [plan.images_per_second for _, plan in plans]
    spans = [
        (value - found.low * value / found.images_per_second,
         found.high * value / found.images_per_second - value)
        for value, found in zip(values, (plan.prediction.throughput for _, plan in plans))
    ]  # fmt: skip
    shown = ax.bar(names, values, 0.62, color=SERIES[0].light, linewidth=0)
    for bar, (_, plan) in zip(shown, plans):
        bar.set_alpha(1.0 if plan.prediction.verdict.name == FITS else 0.4)
    ax.errorbar(
        range(len(plans)), values, yerr=list(zip(*spans)), fmt="none", ecolor=INK.light, capsize=3
    )
    ax.set_ylim(0, 1.1 * max(value + above for value, (_, above) in zip(values, spans)))
    ax.grid(False, axis="x")
    finish(ax, title, "stages x replicas; pale: does not fit; lines: interval", "images/s")
    return figure
