"""Curves of runs: loss and validation Dice against epochs, and the reliability of probabilities."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medunet.errors import DataError
from medunet.metrics.overlap import mean_of_known

from .classes import class_colours
from .panels import RUN_COLOURS, Panel, Theme, render_png

LOG_SCALE_RATIO = 20.0  # a loss that falls by more gets a logarithmic axis, or its end would be a flat line
ROOM_BELOW = 0.15  # below the lowest Dice, where the axis begins; good runs would otherwise be a line at the top
MANY_CLASSES = 10  # a legend of more would cover the curves; then only the mean is drawn

# entries by epoch, with `epoch`, `loss` and, if the epoch was validated, `val_dice` (class -> Dice)
History: TypeAlias = Sequence[Mapping[str, Any]]
Histories: TypeAlias = Mapping[str, History]


def render_curves(history: History) -> bytes:
    """Draw training loss and, if there is any, the Dice of each class and their mean as PNG."""
    if not history:
        raise DataError("a history without epochs has no curves")
    return render_png(curve_panels({"": history}))


def curve_panels(histories: Histories) -> list[Panel]:
    """Return panels of one run with the Dice of each class, or of several runs with their mean Dice.

    Colours follow the order of the histories. Empty histories are not drawn.
    """
    drawn = {name: history for name, history in histories.items() if history}
    colours = {name: RUN_COLOURS[place % len(RUN_COLOURS)] for place, name in enumerate(histories)}
    if not drawn:
        return []
    several = len(histories) > 1
    panels = [Panel("training loss", partial(_losses, drawn, colours if several else {}))]
    if any(record.get("val_dice") for history in drawn.values() for record in history):
        panels.append(Panel("validation Dice", partial(_dice, drawn, colours if several else {})))
    return panels


def reliability_panels(runs: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """Return the reliability diagram of calibrated runs; `before` and `after` calibration have `bins` and `ece`.

    A bin has the mean probability of the most likely class and the share of voxels that have this class.
    """
    title = "probability of the most likely class, and how often it is right"
    return [Panel(title, partial(_reliability, runs))] if any(runs.values()) else []


def _reliability(runs: Mapping[str, Mapping[str, Any]], axes: Axes, theme: Theme) -> None:
    axes.axline((0, 0), slope=1, color=theme.faint)
    for place, (name, calibration) in enumerate(runs.items()):
        colour = RUN_COLOURS[place % len(RUN_COLOURS)]
        for when, style in (("before", (0, (4, 2))), ("after", "-")) if calibration else ():
            probability, right, _ = zip(*calibration[when]["bins"], strict=True)
            label = f"{name} {when} calibration, error {calibration[when]['ece']:.4f}".strip()
            axes.plot(probability, right, marker="o", markersize=4, color=colour, linestyle=style, label=label)
    axes.legend(loc="upper left", fontsize=8, frameon=False, labelcolor=theme.ink)


def _losses(histories: Histories, colours: Mapping[str, str], axes: Axes, theme: Theme) -> None:
    ratios = [1.0]
    for name, history in histories.items():
        losses = [record["loss"] for record in history]
        _plot(axes, history, losses, color=colours.get(name, theme.line), label=name)
        finite = [loss for loss in losses if math.isfinite(loss)]
        if finite and min(finite) > 0:
            ratios.append(max(finite) / min(finite))
    if max(ratios) > LOG_SCALE_RATIO:
        axes.set_yscale("log")
    _finish(axes, theme, "upper right" if colours else None, len(histories))


def _dice(histories: Histories, colours: Mapping[str, str], axes: Axes, theme: Theme) -> None:
    """Draw the mean Dice of several runs, or the Dice of each class of one run and their mean.

    The axis begins below the lowest curve, and the legend is in the corner where the curves do not end.
    """
    entries = len(histories)
    for name, history in histories.items():
        validated = [record for record in history if record.get("val_dice")]
        dice = [record["val_dice"] for record in validated]
        means = [mean_of_known(entry.values()) for entry in dice]
        if colours:
            _plot(axes, validated, means, color=colours[name], label=name)
            continue
        classes = class_colours(dict.fromkeys(name for entry in dice for name in entry))
        entries = len(classes) if len(classes) <= MANY_CLASSES else 0
        for label, colour in list(classes.items())[:entries]:
            _plot(axes, validated, [entry.get(label, math.nan) for entry in dice], color=colour, label=label)
        if len(classes) > 1:
            _plot(axes, validated, means, color=theme.line, label="mean", linestyle=(0, (4, 2)))
    curves = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    values = np.concatenate([[], *curves])
    finite = values[np.isfinite(values)]
    bottom = max(0.0, float(finite.min()) - ROOM_BELOW) if len(finite) else 0.0
    axes.set_ylim(bottom, 1)
    ends = np.array([curve[-1] for curve in curves if len(curve) and np.isfinite(curve[-1])])
    ends_low = len(ends) and ends.mean() < (bottom + 1) / 2
    _finish(axes, theme, "upper right" if ends_low else "lower right", entries)


def _plot(axes: Axes, records: History, values: Sequence[float], **style: Any) -> None:
    marker = "o" if len(records) == 1 else ""  # a single point has no line
    axes.plot([record["epoch"] for record in records], values, linewidth=1.6, marker=marker, markersize=4, **style)


def _finish(axes: Axes, theme: Theme, location: Literal["upper right", "lower right"] | None, entries: int) -> None:
    if location is not None:
        options: dict[str, Any] = {"frameon": False, "labelcolor": theme.ink, "ncols": 1 + entries // 6}
        axes.legend(loc=location, fontsize=8, **options).set_in_layout(False)
    axes.set_xlabel("epoch", fontsize=8.5, color=theme.ink, loc="right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
