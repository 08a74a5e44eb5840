"""Scores of all cases at a glance: a box, and every case as a point, by class and run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from medunet.metrics import CaseScores, PairedDifference

from .classes import class_colours
from .panels import RUN_COLOURS, Panel, Theme

EM_TITLES = {"v_rand": "V_rand", "v_info": "V_info", "pixel_error": "pixel error", "warping_error": "warping error"}
LOG_SCALE_RATIO = 30.0  # a largest distance of more medians gets a logarithmic axis, or one lost case flattens the rest
BOX_WIDTH, SPREAD = 0.5, 0.3  # of a box, and of its points, as parts of its place
INCHES, NARROW = (3.5, 2.7), 2.6  # size of a panel with few boxes, and width of one with a single box
INCHES_PER_BOX, INCHES_PER_LETTER = 0.42, 0.075  # names that do not fit under the axis are turned
POINT_AREA = 11.0


class Strip(NamedTuple):
    """The cases of one class in one run."""

    label: str  # below the axis
    scores: Mapping[str, float]  # by case name; cases without a number are missing
    colour: str


def has_objects(runs: Mapping[str, Sequence[CaseScores]]) -> bool:
    """Return whether cases have scores of objects; `runs` has the cases by letter."""
    return any("objects" in case for cases in runs.values() for case in cases)


def class_scores(cases: Sequence[CaseScores], name: str, metric: str) -> dict[str, float]:
    """Return the finite scores of a class by case; `metric` is a key of `ClassScores`."""
    values = {case["name"]: float(case["classes"].get(name, {}).get(metric, math.nan)) for case in cases}  # type: ignore[call-overload,arg-type] # a number
    return {case: value for case, value in values.items() if math.isfinite(value)}


def metric_titles(unit: str, *, objects: bool = False) -> dict[str, str]:
    """Return the titles of the metrics of a class, or of a class of objects; `unit` is that of distances."""
    if objects:
        return {"mean_ap": "mean AP", "ap_50": "AP at IoU 0.5", "f1": "F1 at IoU 0.5", "seg": "SEG", "aji": "AJI"}
    return {"dice": "Dice", "msd_mm": f"mean surface distance ({unit})", "hd95_mm": f"HD95 ({unit})"}


def distribution_panels(
    runs: Mapping[str, Sequence[CaseScores]], *, names: Sequence[str], unit: str = "mm"
) -> list[Panel]:
    """Return panels of Dice, surface distances and, if there are any, EM scores; `runs` has the cases by letter."""
    colours = class_colours(names)
    by_run = dict(zip(runs, RUN_COLOURS * len(runs), strict=False)) if len(runs) > 1 else {}
    panels = []
    for metric, title in metric_titles(unit, objects=has_objects(runs)).items():
        groups = {
            name: [
                Strip(letter, class_scores(cases, name, metric), by_run.get(letter, colours[name]))
                for letter, cases in runs.items()
            ]
            for name in names
        }
        panels.append(_panel(title, groups, key=metric, is_distance=metric.endswith("_mm")))
    for key in dict.fromkeys(key for cases in runs.values() for case in cases for key in case.get("em", {})):
        strips = []
        for letter, cases in runs.items():
            scores = {case["name"]: case.get("em", {}).get(key, math.nan) for case in cases}
            finite = {name: value for name, value in scores.items() if math.isfinite(value)}
            strips.append(Strip(letter, finite, by_run.get(letter, RUN_COLOURS[-1])))
        panels.append(_panel(EM_TITLES.get(key, key), {"": strips}, key=f"em-{key}", is_distance=False))
    return [panel for panel in panels if panel.points]


def difference_panel(title: str, differences: Mapping[str, PairedDifference], *, key: str, colour: str) -> Panel:
    """Return a panel with the differences of two runs by case, and their mean with its 95 % interval, by class.

    `key` is the prefix of the points' ids, and `colour` is their colour.
    """
    width = max(INCHES[0], 0.8 + 1.6 * INCHES_PER_BOX * len(differences))
    points = {f"strip-{key}-{place}": one.cases for place, one in enumerate(differences.values())}

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(0, color=theme.ink, linewidth=1.0)
        style: dict[str, Any] = {"fmt": "o", "color": theme.line, "markersize": 4, "capsize": 3, "linewidth": 1.4}
        for place, one in enumerate(differences.values()):
            if one.cases:
                _points(axes, place - 0.16, one.differences, colour=colour, gid=f"strip-{key}-{place}")
                axes.errorbar([place + 0.2], [one.mean], yerr=([one.mean - one.low], [one.high - one.mean]), **style)
        _names(axes, range(len(differences)), list(differences), width)
        axes.set_xlim(-0.6, len(differences) - 0.4)

    return Panel(title, draw, inches=(width, INCHES[1]), points=points)


def _panel(title: str, groups: Mapping[str, Sequence[Strip]], *, key: str, is_distance: bool) -> Panel:
    strips = [strip for group in groups.values() for strip in group]
    several = len(strips) // len(groups)  # strips of a group: one per run
    width = max(INCHES[0], 0.8 + INCHES_PER_BOX * (len(strips) + 0.6 * len(groups))) if len(strips) > 1 else NARROW
    points = {f"strip-{key}-{place}": list(strip.scores) for place, strip in enumerate(strips) if strip.scores}

    def draw(axes: Axes, theme: Theme) -> None:
        places = [number + 0.6 * (number // several) for number in range(len(strips))]
        for number, (place, strip) in enumerate(zip(places, strips, strict=True)):
            if strip.scores:
                _box(axes, place, strip, gid=f"strip-{key}-{number}", theme=theme)
        _names(axes, np.reshape(places, (-1, several)).mean(axis=1).tolist(), list(groups), width)
        if several > 1:
            axes.tick_params(axis="x", pad=14)
            options: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            options["xycoords"] = ("data", "axes fraction")
            for place, strip in zip(places, strips, strict=True):
                axes.annotate(strip.label, (place, 0), xytext=(0, -11), color=strip.colour, **options)
        axes.set_xlim(places[0] - 0.7, places[-1] + 0.7)
        _limit(axes, [value for strip in strips for value in strip.scores.values()], is_distance=is_distance)

    return Panel(title, draw, inches=(width, INCHES[1]), points=points)


def _limit(axes: Axes, values: Sequence[float], *, is_distance: bool) -> None:
    low, high = min(values), max(values)
    if not is_distance:
        bottom = max(0.0, low - 0.12 * (max(high, 1.0) - low)) if low > 0.5 else -0.02
        axes.set_ylim(*((bottom, 1.01) if high >= 0.5 else (0, high * 1.15 or 1)))
    elif low > 0 and high > LOG_SCALE_RATIO * float(np.median(values)):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, high * 1.06 or 1)


def _box(axes: Axes, place: float, strip: Strip, *, gid: str, theme: Theme) -> None:
    """Draw a box of quartiles with Tukey's whiskers (the last case within 1.5 quartile distances), and every case."""
    values, line = list(strip.scores.values()), {"color": theme.ink, "linewidth": 1.0}
    style: dict[str, Any] = {"boxprops": line, "whiskerprops": line, "capprops": {"linewidth": 0}}
    style |= {"medianprops": {"color": theme.line, "linewidth": 1.8}, "showfliers": False, "manage_ticks": False}
    axes.boxplot([values], positions=[place], widths=BOX_WIDTH, **style)
    _points(axes, place, values, colour=strip.colour, gid=gid)


def _points(axes: Axes, place: float, values: Sequence[float], *, colour: str, gid: str) -> None:
    # multiples of the golden ratio spread points evenly, and always alike
    spread = place + SPREAD * ((np.arange(len(values)) * 0.618034) % 1 - 0.5)
    axes.scatter(spread, values, s=POINT_AREA, color=colour, alpha=0.75, linewidths=0, zorder=3).set_gid(gid)


def _names(axes: Axes, places: Sequence[float], names: Sequence[str], width: float) -> None:
    axes.set_xticks(list(places), names)
    if len(names) > 1 and max(map(len, names)) * INCHES_PER_LETTER > 0.85 * width / len(names):
        for text in axes.get_xticklabels():
            text.set(rotation=35, ha="right", rotation_mode="anchor")
