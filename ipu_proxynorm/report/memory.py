"""Memory by prediction: bars against capacity, over the schedule's time, by micro-batch."""

from __future__ import annotations

from typing import List, Mapping, Sequence, Tuple

from matplotlib.figure import Figure

from ipu_proxynorm.memory import MIB, IpuBudget
from ipu_proxynorm.memory.budget import TERMS
from ipu_proxynorm.memory.predict import SAFE
from ipu_proxynorm.memory.table import term_name
from ipu_proxynorm.memory.timeline import Timeline
from ipu_proxynorm.report.figure import finish, key, new_figure
from ipu_proxynorm.report.style import INK, MUTED, SERIES, norm_style

#: Terms that are drawn as one: there are more of them than colours that can be told apart.
GROUPS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("weights", ("weights",)),
    ("gradient accumulators", ("gradient_accumulators",)),
    ("optimiser state", ("optimizer_state",)),
    ("stash", ("stash",)),
    ("code", ("code",)),
    ("activations", ("activations",)),
    ("temporaries", ("temporaries",)),
    ("buffers, I/O tiles, imbalance", ("io_buffers", "replication_buffers", "io_tiles",
                                       "tile_imbalance")),
)  # fmt: skip
assert {term for _, terms in GROUPS for term in terms} == set(TERMS), term_name("terms")


def bars(budgets: Sequence[Tuple[str, IpuBudget]], title: str) -> Figure:
    """Return stacked bars, MiB, one for each named budget, against the capacity."""
    width = max(5.4, 1.1 * len(budgets) + 3.6)
    figure, (ax,) = new_figure(size=(width, 3.9))
    names = [name for name, _ in budgets]
    below = [0.0] * len(budgets)
    for (group, terms), colour in zip(GROUPS, SERIES):
        sizes = [sum(budget.terms[term] for term in terms) / MIB for _, budget in budgets]
        ax.bar(names, sizes, 0.62, bottom=below, color=colour.light, label=group, linewidth=0)
        below = [a + b for a, b in zip(below, sizes)]
    capacity = max(budget.capacity for _, budget in budgets) / MIB
    ax.axhline(capacity, color=INK.light, linewidth=1.2, linestyle="--")
    ax.axhline(SAFE * capacity, color=MUTED.light, linewidth=1, linestyle=":")
    ax.set_ylim(0, 1.12 * max(capacity, *below))
    for place, (size, (_, budget)) in enumerate(zip(below, budgets)):
        label = f"{budget.utilisation:.0%}"
        ax.annotate(label, (place, size), (0, 3), textcoords="offset points", ha="center",
                    fontsize=9, color=INK.light)  # fmt: skip
    ax.grid(False, axis="x")
    finish(ax, title, "dashed: capacity; dotted: 85 % of it", "MiB")
    key(ax, beside=True, reverse=True)
    return figure


def over_time(timelines: Sequence[Timeline], capacity_bytes: int, title: str) -> Figure:
    """Return the memory of each IPU over the steps of one weight update."""
    figure, (ax,) = new_figure(size=(9.2, 3.6))
    for line, colour in zip(timelines, _cycle(len(timelines))):
        sizes = [size / MIB for size in line.bytes]
        ax.plot(line.times, sizes, color=colour, linewidth=1.1, label=f"IPU {line.ipu}",
                drawstyle="steps-post")  # fmt: skip
    ax.axhline(capacity_bytes / MIB, color=INK.light, linewidth=1.2, linestyle="--")
    most = max(size for line in timelines for size in line.bytes)
    ax.set_ylim(0, 1.1 * max(most, capacity_bytes) / MIB)
    ax.set_xlim(0, max(line.times[-1] for line in timelines))
    finish(ax, title, "step of the schedule (dashed: capacity)", "MiB")
    key(ax, beside=True)
    return figure


def by_micro_batch(
    sweeps: Mapping[str, Sequence[Tuple[int, float]]], capacity_bytes: int, title: str
) -> Figure:
    """Return bytes of the fullest IPU against the micro-batch, a line for each norm."""
    figure, (ax,) = new_figure(size=(6.4, 3.9))
    for place, (norm, points) in enumerate(sweeps.items()):
        style = norm_style(norm)
        ax.plot(  # each norm's markers on other points: lines that lie on each other show both
            [micro_batch for micro_batch, _ in points],
            [size / MIB for _, size in points],
            color=style.colour.light,
            marker=style.marker,
            markevery=(min(place, len(points) - 1), len(sweeps)),
            dashes=style.dashes or (None, None),
            label=norm,
        )
    capacity = capacity_bytes / MIB
    ax.axhline(capacity, color=INK.light, linewidth=1.2, linestyle="--")
    ax.axhline(SAFE * capacity, color=MUTED.light, linewidth=1, linestyle=":")
    ax.set_ylim(bottom=0)
    finish(
        ax, title, "micro-batch (dashed: capacity; dotted: 85 % of it)", "MiB of the fullest IPU"
    )
    key(ax)
    return figure


def _cycle(count: int) -> List[str]:
    return [SERIES[number % len(SERIES)].light for number in range(count)]
