"""A panel is drawn once and shown twice: in the page, where it takes the page's colours, and as PNG."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL_INCHES = (5.0, 3.1)
DOTS_PER_INCH = 140
ACROSS = 3  # panels side by side in a PNG


class Theme(NamedTuple):
    """Colours of one appearance."""

    paper: str
    ink: str
    faint: str
    line: str


LIGHT = Theme(paper="#ffffff", ink="#5b6168", faint="#e3e5e8", line="#1c1f23")
PAGE = Theme(paper="#010203", ink="#040506", faint="#070809", line="#0a0b0c")
# the colours of PAGE, which nothing else uses, and the variables of the page's style sheet that replace them
VARIABLES = dict(zip(PAGE, ("var(--card)", "var(--soft)", "var(--faint)", "var(--ink)"), strict=True))

# of the runs of a comparison, in their order; after the last the first comes again
RUN_COLOURS = ("#5b7cfa", "#e0457b", "#1f9e89", "#c98a00", "#8a63d2", "#7d8790")


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    draw: Callable[[Axes, Theme], None]
    inches: tuple[float, float] = PANEL_INCHES  # width and height
    points: Mapping[str, Sequence[str]] = field(default_factory=dict)  # cases by id of a group of points, in order


def render_png(panels: Sequence[Panel]) -> bytes:
    """Draw panels as PNG, `ACROSS` per row."""
    return _save(panels, LIGHT, "png")


def render_svg(panel: Panel, *, key: str) -> str:
    """Draw a panel as an SVG element that follows the page's colours and font.

    The groups of points have the ids of `Panel.points`; `key` makes the other ids unique in the page.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        text = _save([panel], PAGE, "svg", metadata={"Date": None, "Creator": None}).decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 role="img" aria-hidden="true">', text, count=1)
    text = re.sub(r"\b(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend)_\d+", key + r"-\g<0>", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", text)


def _save(panels: Sequence[Panel], theme: Theme, kind: str, **options: Any) -> bytes:
    across = min(ACROSS, len(panels))
    rows = math.ceil(len(panels) / across)
    widths = [max(panel.inches[0] for panel in panels[column::across]) for column in range(across)]
    size = (sum(widths), rows * max(panel.inches[1] for panel in panels))
    # Figure without pyplot needs no window system and stays in no global list of figures
    figure = Figure(size, dpi=DOTS_PER_INCH, facecolor=theme.paper, layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False, width_ratios=widths).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_facecolor(theme.paper)
        axes.set_title(panel.title, loc="left", fontsize=10, color=theme.ink)
        axes.tick_params(colors=theme.ink, labelsize=8, length=0)
        axes.grid(True, axis="y", color=theme.faint, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(theme.faint)
        panel.draw(axes, theme)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, facecolor=theme.paper, **options)
    return buffer.getvalue()
