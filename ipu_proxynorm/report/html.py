"""A report as one HTML file that needs nothing else: text, plots, tables, how it was made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Dict, List, Sequence, Set

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.extras import install_command
from ipu_proxynorm.report.style import THEME_CSS, NormStyle, norm_styles

try:
    import jinja2
except ImportError as error:
    raise UserError(
        f"HTML reports need jinja2 ({error}): {install_command('report')}, or ask for --format "
        f"csv,json"
    ) from error


@dataclasses.dataclass(frozen=True)
class HtmlTable:
    """A table: text cells; columns of figures are aligned to the right.

    ``folded``: only its caption shows, until the reader opens it: for long ones.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    @property
    def numeric(self) -> Set[int]:
        """Return the columns whose every cell begins as a number does, or says that there is none.

        A dash says so, and ``undefined``.
        """
        return {
            column
            for column in range(len(self.columns))
            if all(
                row[column][:1] in "0123456789-−" or row[column] == "undefined" for row in self.rows
            )
        }


def html_table(caption: str, cells: Sequence[Sequence[str]]) -> HtmlTable:
    """Return cells, whose first row is the head, as a table of a page."""
    head, *body = cells
    return HtmlTable(caption, head, body)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report: text, a legend of norms, plots (``<svg>`` elements) and tables."""

    heading: str
    text: Sequence[str] = ()
    norms: Sequence[str] = ()
    panels: Sequence[str] = ()
    tables: Sequence[HtmlTable] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a command found, and everything that it takes to find it again.

    Attributes:
        title: heading of the page.
        text: paragraphs below it.
        command: the exact command line.
        sections: the findings.
        configuration: the resolved configuration, YAML.
        versions: version of each program involved.

    """

    title: str
    command: str
    configuration: str
    versions: Dict[str, str]
    text: Sequence[str] = ()
    sections: List[Section] = dataclasses.field(default_factory=list)


def render(report: Report) -> str:
    """Return the report as one HTML page without a single reference to anything outside it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=False)
    template = environment.from_string(
        Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    )
    return template.render(report=report, theme=THEME_CSS, styles=norm_styles, swatch=swatch)


def swatch(style: NormStyle) -> str:
    """Return a small ``<svg>`` of how a norm is drawn."""
    dashes = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in style.dashes)}"'
    return (
        f'<svg width="34" height="12" aria-hidden="true"><line x1="1" x2="33" y1="6" y2="6" '
        f'stroke="{style.colour.light}" stroke-width="3"{dashes if style.dashes else ""}/></svg>'
    )
