"""Pages: whole in themselves, escaped, and readable on any screen."""

import html.parser
import re

from ipu_proxynorm.report.comparison import accuracy_figure, curves_figure
from ipu_proxynorm.report.html import HtmlTable, Report, Section, render
from ipu_proxynorm.report.power import combined, panels
from ipu_proxynorm.report.style import norm_style

POWERS = {"p1": [0.0, 0.5], "p2": [0.1, 0.1], "p3": [0.9, 0.4], "p4": [0.0, 0.0]}


def page():
    table = HtmlTable("All", ["norm", "accuracy, %"], [["ln+pn", "98.1 ± 0.2"], ["<bn>", "-"]])
    return render(
        Report(
            title="A <title> & more",
            command="python run_ipu.py analyse 'a b.yaml'",
            configuration="name: x\n",
            versions={"torch": "2"},
            text=["One paragraph."],
            sections=[
                Section(
                    "Over depth",
                    norms=["ln", "ln+pn"],
                    panels=panels({"ln": POWERS, "ln+pn": POWERS}, "Power"),
                    tables=[table],
                )
            ],
        )
    )


class Resources(html.parser.HTMLParser):
    """Collects everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "link", "img", "use"):
            self.open.append(tag)
        self.found += [
            (tag, name, value)
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "srcset", "data") and value[:1] != "#"
        ]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_fetched_from_anywhere():
    text = page()
    parser = Resources()
    parser.feed(text)
    assert parser.found == []
    assert parser.open == []
    assert not re.search(r"https?:|@import|url\((?!#)", text)


def test_light_dark_phone_and_print():
    text = page()
    for part in ("prefers-color-scheme:dark", "width=device-width", "@media print"):
        assert part in text
    assert text.count("<svg role=") == 4
    assert norm_style("ln+pn").colour.light in text


def test_a_wide_table_scrolls_by_keyboard_too_and_shows_that_it_does():
    text = page()
    assert '<div class="scroll" tabindex="0" role="region" aria-label="All"><table>' in text
    (style,) = re.findall(r"^\.scroll\{(.*?)\}", text, re.DOTALL | re.MULTILINE)
    assert "overflow-x:auto" in style
    assert style.count(" local") == style.count(" scroll") == 2  # shadows, and what covers them
    assert ".scroll{overflow:visible;background:none}" in text  # in print


def test_what_others_wrote_is_escaped_and_figures_stand_to_the_right():
    text = page()
    assert "A &lt;title&gt; &amp; more" in text
    assert "&lt;bn&gt;" in text
    assert '<td class="n">98.1 ± 0.2</td>' in text
    assert "<td>ln+pn</td>" in text


def test_a_long_table_is_folded_and_a_missing_figure_stands_among_figures():
    table = HtmlTable("All of it", ["norm", "loss"], [["bn", "0.5"], ["in", "undefined"]], True)
    text = render(Report("t", "c", "", {}, sections=[Section("s", tables=[table])]))
    assert "<details><summary>All of it</summary>" in text
    assert "<caption>" not in text
    assert '<td class="n">undefined</td>' in text
    assert "<td>in</td>" in text


def test_ids_on_a_page_are_unique():
    ids = re.findall(r'\bid="([^"]*)"', page())
    # Glyphs that one figure draws several times are defined once.
    assert len(ids) == len(set(ids))


def test_figures_show_what_they_are_given():
    figure = combined({"ln": POWERS, "bn": POWERS})
    lines = [line for ax in figure.axes for line in ax.get_lines()]
    assert len(lines) == 8
    assert list(lines[0].get_ydata()) == POWERS["p1"]
    points = {"bn": [(32, 98.0, 0.2), (1, 60.0, None)], "ln": [(1, 97.0, 0.1)]}
    figure = accuracy_figure({"": points, "label_smoothing=0.1": points})
    assert len(figure.axes) == 4  # all, and beside it the best enlarged
    for column in (0, 1):
        assert figure.axes[column].get_ylim() == figure.axes[column + 2].get_ylim()
    assert figure.axes[0].get_ylim()[0] < 60 < 86 == figure.axes[1].get_ylim()[0]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "32"]
    figure = curves_figure(
        {1: {"bn": [(1, 2.0), (2, None)]}, 8: {"bn": [(1, 2.0), (2, 1.0)]}}, "loss"
    )
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["micro-batch 1", "micro-batch 8"]
