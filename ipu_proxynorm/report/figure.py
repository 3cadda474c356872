"""Figures: matplotlib's, as SVG that follows the page's light or dark, and as PNG."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path
from typing import Any, Dict, Match, Optional, Sequence, Tuple
from xml.sax.saxutils import escape, quoteattr

from ipu_proxynorm.errors import UserError, printable
from ipu_proxynorm.extras import install_command
from ipu_proxynorm.report.style import GRID, INK, MUTED, PAPER, PLOT_CSS

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
except ImportError as error:
    raise UserError(
        f"plots and HTML reports need matplotlib ({error}): {install_command('report')}, or ask "
        f"for --format csv,json"
    ) from error

#: Size of one panel in inches; two of them stand side by side on a wide screen.
PANEL_SIZE = (4.6, 3.1)
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: the page's font, selectable
    "svg.hashsalt": "ipu-proxynorm",  # the same figure gives the same file
    "axes.edgecolor": MUTED.light,
    "axes.labelcolor": INK.light,
    "axes.titlecolor": INK.light,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID.light,
    "grid.linewidth": 0.7,
    "text.color": INK.light,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "none",
}
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"


def new_figure(
    rows: int = 1, columns: int = 1, size: Optional[Tuple[float, float]] = None
) -> Tuple[Figure, Sequence[Axes]]:
    """Return a figure and its axes, row by row; ``size`` in inches, of one panel."""
    width, height = size or PANEL_SIZE
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06)  # inches between panels
        figure = Figure(figsize=(width * columns, height * rows), layout=layout)
        FigureCanvasAgg(figure)
        axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    return figure, axes


def finish(ax: Axes, title: str, x: str, y: str) -> None:
    """Give axes their title and their labels (with units)."""
    with matplotlib.rc_context(_STYLE):
        ax.set_title(printable(title))
        ax.set_xlabel(x)
        ax.set_ylabel(y)


def legend(figure: Figure, columns: int = 6) -> None:
    """Name, above all panels, what they show: in the order of the panel that shows most."""
    panels = [ax.get_legend_handles_labels() for ax in figure.axes]
    named: Dict[str, Any] = {}
    for handles, labels in sorted(panels, key=lambda panel: -len(panel[1])):
        for handle, label in zip(handles, labels):
            named.setdefault(label, handle)
    with matplotlib.rc_context(_STYLE):
        figure.legend(
            list(named.values()),
            list(named),
            loc="outside upper center",
            ncols=columns,
            fontsize=9,
            handlelength=3,
        )


def key(ax: Axes, *, beside: bool = False, reverse: bool = False) -> None:
    """Name what one panel shows, within it or beside it; ``reverse``: as stacks are read."""
    handles, labels = ax.get_legend_handles_labels()
    if reverse:
        handles, labels = handles[::-1], labels[::-1]
    where: Any = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if beside else {}
    with matplotlib.rc_context(_STYLE):
        ax.legend(handles, labels, fontsize=9, **where)


def svg(figure: Figure, title: str) -> str:
    """Return the figure as an ``<svg>`` element for an HTML page with `THEME_CSS`.

    Args:
        figure: drawn with the light values of the colours of `ipu_proxynorm.report.style`.
        title: what the figure shows, for those who cannot see it; one of its own on a page.

    """
    title = printable(title)  # XML has no control characters
    stream = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Pages hold several figures: ids are told apart by the title.
    prefix = f"f{zlib.crc32(title.encode()):08x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r'font(-family)?: ([^;"]*px )?[^;"]*', rf"font\g<1>: \g<2>{_FONT}", text)
    text = re.sub(r'style="([^"]*)"', _colours_apart, text)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    assert size is not None
    width, height = (f"{float(points) * 4 / 3:.0f}" for points in size.groups())
    text = text.replace(size[0], f'width="{width}" height="{height}"', 1)
    label = f' role="img" aria-label={quoteattr(title)}'
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    return text.replace("<svg", f"<svg{label}", 1).strip()


def _colours_apart(style: Match[str]) -> str:
    """Return a style whose colours are attributes: a style sheet can then change them."""
    declared = [part.strip() for part in style[1].split(";") if part.strip()]
    colours = [part for part in declared if re.fullmatch(r"(fill|stroke): #[0-9a-f]{6}", part)]
    others = "; ".join(part for part in declared if part not in colours)
    attributes = [part.replace(": ", '="') + '"' for part in colours]
    return " ".join([*attributes, *([f'style="{others}"'] if others else [])])


def standalone_svg(figure: Figure, title: str) -> str:
    """Return the figure as an SVG file: light, and dark where its viewer is and knows it."""
    title = printable(title)
    body = svg(figure, title)
    names = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head, _, rest = body.replace("<svg", names, 1).partition(">")
    paper = f'<rect width="100%" height="100%" fill="{PAPER.light}"/>'
    return f"{head}><title>{escape(title)}</title><style>{PLOT_CSS}</style>{paper}{rest}\n"


def save_png(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write the figure as PNG on white paper."""
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, format="png", dpi=dpi, facecolor=PAPER.light)
