"""Colours: one per norm, the same in every plot, for light and dark paper and for all eyes.

Hues after M. Okabe and K. Ito, *Color Universal Design* (2008), which stay apart under the common
kinds of colour blindness; line dashes and markers tell the norms apart without any colour.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Dict, Iterable, Tuple


@dataclasses.dataclass(frozen=True)
class Colour:
    """A colour: its CSS variable on a page, and its value on light and on dark paper."""

    name: str
    light: str
    dark: str


INK = Colour("ink", "#1f2328", "#e6edf3")
MUTED = Colour("muted", "#57606a", "#9aa4af")
GRID = Colour("grid", "#d7dce1", "#333a42")
PAPER = Colour("paper", "#ffffff", "#0d1117")
PANEL = Colour("panel", "#f6f8fa", "#161b22")
#: Categories that are not norms (kinds of memory, pipeline stages), in the order of use.
SERIES: Tuple[Colour, ...] = (
    Colour("series-blue", "#0072b2", "#56a8e0"),
    Colour("series-orange", "#c98500", "#e8a735"),
    Colour("series-green", "#00866a", "#2cc79f"),
    Colour("series-red", "#d1490c", "#ff8552"),
    Colour("series-pink", "#b6578f", "#e596c3"),
    Colour("series-sky", "#3a94c9", "#8cd0f5"),
    Colour("series-grey", "#6b7178", "#a9b1ba"),
    Colour("series-violet", "#6a4fb3", "#ab95ee"),
)


@dataclasses.dataclass(frozen=True)
class NormStyle:
    """How a norm is drawn: colour, marker (matplotlib's letter) and dashes (on, off in points)."""

    colour: Colour
    marker: str
    dashes: Tuple[float, ...] = ()


_NORMS: Dict[str, NormStyle] = {
    "bn": NormStyle(Colour("norm-bn", "#0073b3", "#57a9e1"), "o"),
    "in": NormStyle(Colour("norm-in", "#b7588f", "#e697c4"), "v", (1.2, 1.2)),
    "ln": NormStyle(Colour("norm-ln", "#d24a0d", "#ff8653"), "s", (5, 1.5)),
    "gn": NormStyle(Colour("norm-gn", "#b87a00", "#e9a836"), "D", (5, 1.5, 1.2, 1.5)),
    "ln+pn": NormStyle(Colour("norm-ln-pn", "#00876b", "#2dc8a0"), "^"),
    "gn+pn": NormStyle(Colour("norm-gn-pn", "#6b50b4", "#ac96ef"), "P"),
    "ln+ws": NormStyle(Colour("norm-ln-ws", "#6c7279", "#aab2bb"), "X", (2.5, 1.5)),
    "gn+ws": NormStyle(Colour("norm-gn-ws", "#8a6d3b", "#c9ab77"), "h", (2.5, 1.5)),
    "none": NormStyle(Colour("norm-none", "#1e2227", "#e5ecf2"), "x", (1, 2)),
    "other": NormStyle(Colour("norm-other", "#3b95ca", "#8dd1f6"), "*", (3, 1, 1, 1, 1, 1)),
}


def norm_style(spec: str) -> NormStyle:
    """Return how a norm spec is drawn; the number of groups does not change its colour."""
    return _NORMS.get(re.sub(r"^gn\d+", "gn", str(spec).strip()), _NORMS["other"])


#: Marker and dashes of the second, third, ... curve of one norm: runs drawn together.
_REPEATED = (("<", (3, 3)), (">", (1, 1)), ("p", (7, 2, 2, 2)), ("d", (2, 4)))


def norm_styles(names: Iterable[str]) -> Dict[str, NormStyle]:
    """Return how each of several curves is drawn.

    Args:
        names: norm specs, or ``spec (run)`` where several runs are of one norm: these share the
            norm's colour and are told apart by marker and dashes.

    """
    styles: Dict[str, NormStyle] = {}
    seen: Dict[str, int] = {}
    for name in names:
        spec = name.partition(" (")[0]
        style, number = norm_style(spec), seen.get(spec, 0)
        seen[spec] = number + 1
        if number:
            marker, dashes = _REPEATED[(number - 1) % len(_REPEATED)]
            style = dataclasses.replace(style, marker=marker, dashes=dashes)
        styles[name] = style
    return styles


def colours() -> Tuple[Colour, ...]:
    """Return every colour, each with a light value of its own: plots find them by it."""
    norms = tuple(style.colour for style in _NORMS.values())
    return (INK, MUTED, GRID, PAPER, PANEL, *SERIES, *norms)


def _variables(value: str) -> str:
    return "".join(f"--{c.name}:{getattr(c, value)};" for c in colours())


def _darker(attribute: str) -> str:
    return "".join(
        f'[{attribute}="{c.light}"]{{{attribute}:{c.dark}}}' for c in colours() if c.light != c.dark
    )


#: CSS that turns the light colours of plots, which are attributes, dark on a dark screen. Where it
#: is not understood, and in print, they stay.
PLOT_CSS = f"@media screen and (prefers-color-scheme:dark){{{_darker('fill')}{_darker('stroke')}}}"
#: CSS that gives every colour of a page its value, for light and dark; print is always light.
THEME_CSS = (
    f":root{{color-scheme:light dark;{_variables('light')}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables('dark')}}}}}{PLOT_CSS}"
)
