"""Scores of all cases at a glance: a box and every case as a point, class by class and run by run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats

from medunet.metrics import CaseScores, PairedDifference

from .colours import class_colours
from .panels import RUN_COLOURS, Panel, Theme

Scores: TypeAlias = Mapping[str, float]
"""A number by case name; cases without one are left out."""

METRICS = ("dice", "msd_mm", "hd95_mm")
"""Numbers of a class that are drawn."""

EM_TITLES = {"v_rand": "V_rand", "v_info": "V_info", "pixel_error": "pixel error", "warping_error": "warping error"}

LOG_SCALE_RATIO = 30.0
"""Distances whose largest is more than this many medians get a logarithmic axis, or one lost case flattens the rest."""

BOX_WIDTH = 0.5
SPREAD = 0.3
"""Part of a box's place over which its points are strewn."""

INCHES = (3.5, 2.7)
"""Of a panel with few boxes; as three of them stand side by side in the page, they are smaller than curves."""

NARROW = 2.6
"""Width of a panel with a single box."""

INCHES_PER_BOX = 0.42
INCHES_PER_LETTER = 0.075
"""Width of a letter under an axis; names that do not fit are turned."""

POINT_AREA = 11.0


@dataclass(frozen=True)
class Strip:
    """The cases of one class in one run.

    Args:
        label: below the axis.
        scores: finite numbers by case.
        colour: of box and points.
    """

    label: str
    scores: Scores
    colour: str


def class_scores(cases: Sequence[CaseScores], name: str, metric: str) -> dict[str, float]:
    """A number of a class by case, where there is one.

    Args:
        cases: of one run.
        name: of the class.
        metric: a key of `ClassScores`.
    """
    found = {}
    for case in cases:
        scores: Mapping[str, Any] = case["classes"].get(name, {})
        if math.isfinite(value := float(scores.get(metric, math.nan))):
            found[case["name"]] = value
    return found


def em_scores_of(cases: Sequence[CaseScores], key: str) -> dict[str, float]:
    """An EM score by case, where there is one."""
    found = {case["name"]: case.get("em", {}).get(key, math.nan) for case in cases}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def metric_titles(unit: str) -> dict[str, str]:
    """What the numbers of a class are called.

    Example:
        >>> metric_titles("px")["hd95_mm"]
        'HD95 (px)'
    """
    return {"dice": "Dice", "msd_mm": f"mean surface distance ({unit})", "hd95_mm": f"HD95 ({unit})"}


def distribution_panels(
    runs: Mapping[str, Sequence[CaseScores]], *, names: Sequence[str], unit: str = "mm"
) -> list[Panel]:
    """Panels of Dice, surface distances and, where there are any, EM scores.

    Args:
        runs: cases by the run's letter.
        names: of the classes.
        unit: of distances.
    """
    colours = class_colours(names)
    titles = metric_titles(unit)
    panels = []
    for metric in METRICS:
        groups = {
            name: [
                Strip(letter, class_scores(cases, name, metric), _run_colour(runs, letter) or colours[name])
                for letter, cases in runs.items()
            ]
            for name in names
        }
        panels.append(_panel(titles[metric], groups, key=metric, is_distance=metric != "dice"))
    for key in dict.fromkeys(key for cases in runs.values() for case in cases for key in case.get("em", {})):
        title = EM_TITLES.get(key, key)
        strips = [
            Strip(letter, em_scores_of(cases, key), _run_colour(runs, letter) or RUN_COLOURS[-1])
            for letter, cases in runs.items()
        ]
        panels.append(_panel(title, {"": strips}, key=f"em-{key}", is_distance=False))
    return [panel for panel in panels if panel.points]


def difference_panel(title: str, differences: Mapping[str, PairedDifference], *, key: str, colour: str) -> Panel:
    """The differences of two runs case by case, their mean and its 95 % interval, class by class.

    Args:
        title: says what is subtracted from what.
        differences: by class.
        key: for the ids of the points.
        colour: of the points.
    """
    points = {f"strip-{key}-{place}": found.cases for place, found in enumerate(differences.values())}
    inches = (max(INCHES[0], 0.8 + 1.6 * INCHES_PER_BOX * len(differences)), INCHES[1])
    draw = partial(_differences, differences=differences, key=key, colour=colour, width=inches[0])
    return Panel(title, draw, inches=inches, points=points)


def box_numbers(scores: Scores) -> dict[str, float]:
    """Median, quartiles and whiskers (Tukey: the last case within 1.5 quartile distances) of a strip.

    Example:
        >>> numbers = box_numbers({"a": 0.1, "b": 0.8, "c": 0.9, "d": 0.9, "e": 1.0})
        >>> numbers["med"], numbers["q1"], numbers["whislo"]
        (0.9, 0.8, 0.8)
    """
    (found,) = boxplot_stats(list(scores.values()))
    return {key: float(found[key]) for key in ("med", "q1", "q3", "whislo", "whishi")}


def _run_colour(runs: Mapping[str, object], letter: str) -> str | None:
    return RUN_COLOURS[list(runs).index(letter) % len(RUN_COLOURS)] if len(runs) > 1 else None


def _panel(title: str, groups: Mapping[str, Sequence[Strip]], *, key: str, is_distance: bool) -> Panel:
    strips = [strip for group in groups.values() for strip in group]
    points = {f"strip-{key}-{place}": list(strip.scores) for place, strip in enumerate(strips) if strip.scores}
    width = max(INCHES[0], 0.8 + INCHES_PER_BOX * (len(strips) + 0.6 * len(groups)))
    inches = (width if len(strips) > 1 else NARROW, INCHES[1])
    draw = partial(_boxes, groups=groups, key=key, is_distance=is_distance, width=inches[0])
    return Panel(title, draw, inches=inches, points=points)


def _boxes(
    axes: Axes, theme: Theme, *, groups: Mapping[str, Sequence[Strip]], key: str, is_distance: bool, width: float
) -> None:
    several = max(len(group) for group in groups.values()) > 1
    place, centres, every, everything = 0, [], [], []
    for index, group in enumerate(groups.values()):
        positions = [index * (len(group) + 0.6) + number for number in range(len(group))]
        centres.append(float(np.mean(positions)))
        for position, strip in zip(positions, group, strict=True):
            every.append((position, strip))
            if strip.scores:
                _box(axes, position, strip, gid=f"strip-{key}-{place}", theme=theme)
                everything += list(strip.scores.values())
            place += 1
    _names(axes, centres, list(groups), width)
    if several:
        axes.tick_params(axis="x", pad=14)
        for position, strip in every:
            axes.annotate(
                strip.label,
                (position, 0),
                xycoords=("data", "axes fraction"),
                xytext=(0, -11),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=strip.colour,
            )
    axes.set_xlim(every[0][0] - 0.7, every[-1][0] + 0.7)
    if is_distance and everything:
        if min(everything) > 0 and max(everything) > LOG_SCALE_RATIO * float(np.median(everything)):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, max(everything) * 1.06 or 1)
    elif everything:
        low = min(everything)
        axes.set_ylim(max(0.0, low - 0.12 * (max(*everything, 1.0) - low)) if low > 0.5 else 0.0 - 0.02, 1.01)
        if max(everything) < 0.5:
            axes.set_ylim(0, max(everything) * 1.15 or 1)


def _box(axes: Axes, position: float, strip: Strip, *, gid: str, theme: Theme) -> None:
    line = {"color": theme["ink"], "linewidth": 1.0}
    axes.bxp(
        [{**box_numbers(strip.scores), "fliers": []}],
        positions=[position],
        widths=BOX_WIDTH,
        showfliers=False,
        manage_ticks=False,
        boxprops=line,
        whiskerprops=line,
        capprops={"linewidth": 0},
        medianprops={"color": theme["line"], "linewidth": 1.8},
    )
    _points(axes, position, list(strip.scores.values()), colour=strip.colour, gid=gid)


def _points(axes: Axes, position: float, values: Sequence[float], *, colour: str, gid: str) -> None:
    # the golden ratio strews points evenly, and always alike
    strewn = position + SPREAD * ((np.arange(len(values)) * 0.618034) % 1 - 0.5)
    drawn = axes.scatter(strewn, values, s=POINT_AREA, color=colour, alpha=0.75, linewidths=0, zorder=3)
    drawn.set_gid(gid)


def _differences(
    axes: Axes, theme: Theme, *, differences: Mapping[str, PairedDifference], key: str, colour: str, width: float
) -> None:
    axes.axhline(0, color=theme["ink"], linewidth=1.0)
    for place, found in enumerate(differences.values()):
        if not found.cases:
            continue
        _points(axes, place - 0.16, found.differences, colour=colour, gid=f"strip-{key}-{place}")
        bar = ([found.mean - found.low], [found.high - found.mean])
        axes.errorbar(
            [place + 0.2], [found.mean], yerr=bar, fmt="o", color=theme["line"], markersize=4, capsize=3, linewidth=1.4
        )
    _names(axes, range(len(differences)), list(differences), width)
    axes.set_xlim(-0.6, len(differences) - 0.4)


def _names(axes: Axes, places: Sequence[float], names: Sequence[str], width: float) -> None:
    axes.set_xticks(list(places), names)
    if len(names) > 1 and max(map(len, names)) * INCHES_PER_LETTER > 0.85 * width / len(names):
        for text in axes.get_xticklabels():
            text.set(rotation=35, ha="right", rotation_mode="anchor")
