"""Curves of a training: loss and validation Dice against epochs, as a PNG."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from typing_extensions import NotRequired

from medunet.errors import DataError
from medunet.files import write_atomically

from .colours import class_colours

PANEL_INCHES = (5.0, 3.1)
DOTS_PER_INCH = 140

Panel: TypeAlias = Literal["training loss", "validation Dice"]

LOG_SCALE_RATIO = 20.0
"""A loss that falls by more than this factor is drawn on a logarithmic axis, or its end would be a flat line."""


class EpochRecord(TypedDict):
    """What a training notes after an epoch; `val_dice` (class -> Dice) only where it validated."""

    epoch: int
    iteration: int
    loss: float
    lr: float
    seconds: float
    val_dice: NotRequired[dict[str, float]]


class Theme(TypedDict):
    """Colours of one appearance of the page."""

    paper: str
    ink: str
    faint: str
    line: str


LIGHT = Theme(paper="#ffffff", ink="#5b6168", faint="#e3e5e8", line="#1c1f23")
DARK = Theme(paper="#1a1d21", ink="#9aa1aa", faint="#30353b", line="#e6e8eb")


def curves_png(history: Sequence[EpochRecord], *, path: str | os.PathLike[str], dark: bool = False) -> Path:
    """Draw the curves into a PNG file and return its path; arguments as of `render_curves`."""
    return write_atomically(path, render_curves(history, dark=dark))


def panels_of(history: Sequence[EpochRecord]) -> tuple[Panel, ...]:
    """Return the panels that a history can fill."""
    return (
        ("training loss", "validation Dice")
        if any(record.get("val_dice") for record in history)
        else ("training loss",)
    )


def render_curves(
    history: Sequence[EpochRecord], *, panels: Sequence[Panel] | None = None, dark: bool = False
) -> bytes:
    """Draw training loss and, where there is any, the Dice of each class and their mean as PNG.

    Args:
        history: one record an epoch.
        panels: which of `panels_of(history)`, side by side; None draws all.
        dark: light lines on dark ground.

    Raises:
        DataError: the history is empty.
    """
    if not history:
        raise DataError("a history without epochs has no curves", remedy="draw after the first epoch")
    theme = DARK if dark else LIGHT
    panels = panels_of(history) if panels is None else panels
    width, height = PANEL_INCHES
    figure = Figure((width * len(panels), height), dpi=DOTS_PER_INCH, facecolor=theme["paper"], layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _style(axes, panel, theme)
        if panel == "training loss":
            _loss(axes, history, theme)
        else:
            _dice(axes, [record for record in history if record.get("val_dice")], theme)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=theme["paper"])
    return buffer.getvalue()


def _loss(axes: Axes, history: Sequence[EpochRecord], theme: Theme) -> None:
    losses = [record["loss"] for record in history]
    axes.plot([record["epoch"] for record in history], losses, color=theme["line"], **_stroke(len(history)))
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > LOG_SCALE_RATIO:
        axes.set_yscale("log")


def _dice(axes: Axes, validated: Sequence[EpochRecord], theme: Theme) -> None:
    epochs = [record["epoch"] for record in validated]
    dice: list[Mapping[str, float]] = [record["val_dice"] for record in validated]
    colours = class_colours(dict.fromkeys(name for entry in dice for name in entry))
    stroke = _stroke(len(validated))
    for name, colour in colours.items():
        axes.plot(epochs, [entry.get(name, math.nan) for entry in dice], color=colour, label=name, **stroke)
    if len(colours) > 1:
        axes.plot(
            epochs, [_mean(entry) for entry in dice], color=theme["line"], label="mean", linestyle=(0, (4, 2)), **stroke
        )
    axes.set_ylim(0, 1)
    legend = axes.legend(
        loc="lower right", fontsize=8, frameon=False, labelcolor=theme["ink"], ncols=1 + len(colours) // 6
    )
    legend.set_in_layout(False)


def _mean(dice: Mapping[str, float]) -> float:
    found = [value for value in dice.values() if math.isfinite(value)]
    return sum(found) / len(found) if found else math.nan


def _stroke(points: int) -> dict[str, Any]:
    """Return the style of a line; a single point has no line, so it gets a mark."""
    return {"linewidth": 1.6, "marker": "o" if points == 1 else "", "markersize": 4}


def _style(axes: Axes, title: str, theme: Theme) -> None:
    axes.set_facecolor(theme["paper"])
    axes.set_title(title, loc="left", fontsize=9.5, color=theme["ink"])
    axes.set_xlabel("epoch", fontsize=8.5, color=theme["ink"], loc="right")
    axes.tick_params(colors=theme["ink"], labelsize=8, length=0)
    axes.grid(True, axis="y", color=theme["faint"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme["faint"])
