"""Plots: one colour a norm, light and dark, nothing fetched; both releases of matplotlib."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from ipu_proxynorm.report.figure import (
    finish,
    key,
    legend,
    new_figure,
    save_png,
    standalone_svg,
    svg,
)
from ipu_proxynorm.report.style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    PLOT_CSS,
    THEME_CSS,
    colours,
    norm_style,
    norm_styles,
)

SPECS = ["bn", "in", "ln", "gn4", "ln+pn", "gn4+pn", "ln+ws", "gn4+ws", "none"]


@pytest.fixture
def figure():
    figure, (ax,) = new_figure()
    for place, spec in enumerate(SPECS):
        style = norm_style(spec)
        ax.plot([1, 2], [place, 1], color=style.colour.light, marker=style.marker, label=spec)
    legend(figure)
    finish(ax, "P1 & P2", "layer", "power <1>")
    return figure


def test_the_legend_names_what_any_panel_shows():
    """A comparison may lack a norm's runs at one micro-batch size."""
    shared, panels = new_figure(1, 3)
    for ax, specs in zip(panels, (["gn4+pn"], ["bn", "gn4+pn"], ["ln"])):
        for spec in specs:
            ax.plot([1, 2], [1, 1], label=spec)
    legend(shared)
    texts = [text.get_text() for text in shared.legends[0].get_texts()]
    assert texts == ["bn", "gn4+pn", "ln"]


def luminance(colour):
    """Relative luminance, as WCAG 2.1 defines it."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_norm_stands_out_from_its_paper(spec, mode):
    """WCAG 2.1 asks 3:1 of graphical objects."""
    paper = getattr(PAPER, mode)
    assert contrast(getattr(norm_style(spec).colour, mode), paper) >= 3


def test_norms_differ_without_colour_and_keep_theirs():
    drawn = [norm_style(spec) for spec in SPECS]
    assert len({style.marker for style in drawn}) == len(SPECS)
    assert norm_style("gn32+pn") == norm_style("gn4+pn")
    assert norm_style("ln+pn+ws") == norm_style("bn+ws")  # others share one


def test_runs_of_one_norm_share_its_colour_and_differ_otherwise():
    styles = norm_styles(["ln", "bn (one)", "bn (other)", "bn (third)"])
    assert styles["ln"] == norm_style("ln")
    assert {style.colour for name, style in styles.items() if name != "ln"} == {
        norm_style("bn").colour
    }
    assert len({style.marker for style in styles.values()}) == 4
    assert len({style.dashes for style in styles.values()}) == 4


def test_every_colour_is_found_again_in_a_plot():
    assert len({c.light for c in colours()}) == len({c.name for c in colours()}) == len(colours())
    assert all(f"--{c.name}:{c.light}" in THEME_CSS for c in colours())
    assert all(f"--{c.name}:{c.dark}" in THEME_CSS for c in colours())
    assert PLOT_CSS in THEME_CSS
    for colour in colours():
        for what in ("fill", "stroke"):
            assert f'[{what}="{colour.light}"]{{{what}:{colour.dark}}}' in PLOT_CSS


def test_inline_svg_takes_colours_and_fonts_of_the_page(figure):
    text = svg(figure, 'A "title" & more')
    for spec in SPECS:
        assert f'stroke="{norm_style(spec).colour.light}"' in text
    assert "aria-label='A \"title\" &amp; more'" in text
    assert "system-ui" in text
    assert "http" not in text
    assert "P1 &amp; P2" in text  # text, not outlines


def test_colours_are_attributes_which_every_renderer_knows_and_a_style_sheet_overrides(figure):
    key(figure.axes[0], beside=True)
    text = standalone_svg(figure, "A")
    style, rest = re.search(r"<style>(.*?)</style>(.*)", text, re.DOTALL).groups()
    assert style == PLOT_CSS
    assert style.startswith("@media screen and (prefers-color-scheme:dark){")
    for words in ("var(", "--", "%;", "height:auto"):
        assert words not in text
    drawn = set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{6})"', rest))
    assert drawn <= {c.light for c in colours()}
    assert drawn >= {PAPER.light, INK.light, MUTED.light, GRID.light}
    styles = re.findall(r'style="([^"]*)"', rest)
    assert not [found for found in styles if "#" in found]
    texts = re.findall(r"<text [^>]*>", rest)
    assert texts
    assert all("fill=" in found for found in texts)  # else black, on a dark page too
    root = ElementTree.fromstring(text)
    width, height = float(root.get("width")), float(root.get("height"))
    *_, box_width, box_height = map(float, root.get("viewBox").split())
    assert width / height == pytest.approx(box_width / box_height, rel=0.01)


def test_control_characters_in_a_title_leave_xml_whole(figure):
    finish(figure.axes[0], "run \x1b[31m", "layer", "power")
    text = standalone_svg(figure, "title \x1b\x00")
    ElementTree.fromstring(text)
    assert "title \\x1b\\x00" in text


def test_figures_on_one_page_share_no_ids(figure):
    one, other = svg(figure, "one"), svg(figure, "other")
    ids = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (one, other)]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]*)\)", one)) <= ids[0]


def test_standalone_svg_is_wellformed_and_knows_dark(figure):
    text = standalone_svg(figure, "A <title>")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in text
    assert set(re.findall(r"https?://[^\"]*", text)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_png(figure, tmp_path):
    save_png(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
