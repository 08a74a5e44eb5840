"""Curves of trainings: loss and validation Dice against epochs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from typing_extensions import NotRequired

from medunet.errors import DataError
from medunet.files import write_atomically

from .colours import class_colours
from .panels import RUN_COLOURS, Panel, Theme, render_png

PanelName: TypeAlias = Literal["training loss", "validation Dice"]
Corner: TypeAlias = Literal["upper right", "lower right"]

LOG_SCALE_RATIO = 20.0
"""A loss that falls by more than this factor is drawn on a logarithmic axis, or its end would be a flat line."""

ROOM_BELOW = 0.15
"""How far under the lowest Dice its axis begins; good trainings would else be a line at the top."""

MANY_CLASSES = 10
"""More classes than these make a legend that covers the curves; then only the mean is drawn."""


class EpochRecord(TypedDict):
    """What a training notes after an epoch; `val_dice` (class -> Dice) only where it validated."""

    epoch: int
    iteration: int
    loss: float
    lr: float
    seconds: float
    val_dice: NotRequired[dict[str, float]]


def curves_png(history: Sequence[EpochRecord], *, path: str | os.PathLike[str], dark: bool = False) -> Path:
    """Draw the curves into a PNG file and return its path; arguments as of `render_curves`."""
    return write_atomically(path, render_curves(history, dark=dark))


def panels_of(history: Sequence[EpochRecord]) -> tuple[PanelName, ...]:
    """Return the panels that a history can fill."""
    return (
        ("training loss", "validation Dice")
        if any(record.get("val_dice") for record in history)
        else ("training loss",)
    )


def render_curves(
    history: Sequence[EpochRecord], *, panels: Sequence[PanelName] | None = None, dark: bool = False
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
    drawn = [panel for panel in curve_panels({"": history}) if panels is None or panel.title in panels]
    return render_png(drawn, dark=dark)


def curve_panels(histories: Mapping[str, Sequence[EpochRecord]]) -> list[Panel]:
    """Panels of one training, or of several in one: the classes of one, the means of several.

    Args:
        histories: records by name (of the run or fold) in the order of their colours; those without epochs are
            left out.
    """
    several = len(histories) > 1
    drawn = {
        name: (RUN_COLOURS[place % len(RUN_COLOURS)] if several else None, history)
        for place, (name, history) in enumerate(histories.items())
        if history
    }
    if not drawn:
        return []
    panels = [Panel("training loss", partial(_losses, drawn))]
    if any(record.get("val_dice") for _, history in drawn.values() for record in history):
        panels.append(Panel("validation Dice", partial(_means if several else _classes, drawn)))
    return panels


def mean_dice(dice: Mapping[str, float]) -> float:
    """Mean over the classes that have a number; NaN where none has."""
    found = [value for value in dice.values() if math.isfinite(value)]
    return sum(found) / len(found) if found else math.nan


_Histories: TypeAlias = Mapping[str, tuple[str | None, Sequence[EpochRecord]]]


def _losses(histories: _Histories, axes: Axes, theme: Theme) -> None:
    ratios = []
    for name, (colour, history) in histories.items():
        losses = [record["loss"] for record in history]
        axes.plot(
            [record["epoch"] for record in history],
            losses,
            color=colour or theme["line"],
            label=name,
            **_stroke(len(history)),
        )
        finite = [loss for loss in losses if math.isfinite(loss)]
        ratios += [max(finite) / min(finite) if min(finite) > 0 else 1.0] if finite else []
    if ratios and max(ratios) > LOG_SCALE_RATIO:
        axes.set_yscale("log")
    if len(histories) > 1:
        _legend(axes, theme, location="upper right", columns=1 + len(histories) // 6)
    _epochs(axes, theme)


def _means(histories: _Histories, axes: Axes, theme: Theme) -> None:
    drawn: list[float] = []
    for name, (colour, history) in histories.items():
        validated = [record for record in history if record.get("val_dice")]
        means = [mean_dice(record["val_dice"]) for record in validated]
        drawn += means
        epochs = [record["epoch"] for record in validated]
        axes.plot(epochs, means, color=colour, label=name, **_stroke(len(validated)))
    _from_lowest(axes, drawn)
    _legend(axes, theme, location=_free_corner(axes), columns=1 + len(histories) // 6)
    _epochs(axes, theme)


def _classes(histories: _Histories, axes: Axes, theme: Theme) -> None:
    ((_, history),) = histories.values()
    validated = [record for record in history if record.get("val_dice")]
    epochs = [record["epoch"] for record in validated]
    dice: list[Mapping[str, float]] = [record["val_dice"] for record in validated]
    colours = class_colours(dict.fromkeys(name for entry in dice for name in entry))
    stroke = _stroke(len(validated))
    shown = colours if len(colours) <= MANY_CLASSES else {}
    drawn = [mean_dice(entry) for entry in dice]
    for name, colour in shown.items():
        drawn += [entry[name] for entry in dice if name in entry]
        axes.plot(epochs, [entry.get(name, math.nan) for entry in dice], color=colour, label=name, **stroke)
    if len(colours) > 1:
        means = [mean_dice(entry) for entry in dice]
        axes.plot(epochs, means, color=theme["line"], label="mean", linestyle=(0, (4, 2)), **stroke)
    _from_lowest(axes, drawn)
    _legend(axes, theme, location=_free_corner(axes), columns=1 + len(shown) // 6)
    _epochs(axes, theme)


def _from_lowest(axes: Axes, drawn: Sequence[float]) -> None:
    lowest = min((value for value in drawn if math.isfinite(value)), default=0.0)
    axes.set_ylim(max(0.0, lowest - ROOM_BELOW), 1)


def _free_corner(axes: Axes) -> Corner:
    """The corner on the right where the curves do not end."""
    ends = [float(np.asarray(line.get_ydata())[-1]) for line in axes.get_lines() if len(np.asarray(line.get_ydata()))]
    finite = [end for end in ends if math.isfinite(end)]
    return "upper right" if finite and sum(finite) / len(finite) < sum(axes.get_ylim()) / 2 else "lower right"


def _epochs(axes: Axes, theme: Theme) -> None:
    axes.set_xlabel("epoch", fontsize=8.5, color=theme["ink"], loc="right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: Axes, theme: Theme, *, location: Corner, columns: int) -> None:
    legend = axes.legend(loc=location, fontsize=8, frameon=False, labelcolor=theme["ink"], ncols=columns)
    legend.set_in_layout(False)


def _stroke(points: int) -> dict[str, Any]:
    """Return the style of a line; a single point has no line, so it gets a mark."""
    return {"linewidth": 1.6, "marker": "o" if points == 1 else "", "markersize": 4}
