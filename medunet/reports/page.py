"""One self-contained HTML page about runs. It loads no other files and adapts to dark mode and narrow screens."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medunet import __version__
from medunet.files import write_atomically
from medunet.metrics import CaseScores, summarise

from .classes import class_colours
from .comparison import compare, compared_metrics
from .curves import Histories, curve_panels, reliability_panels
from .distributions import EM_TITLES, difference_panel, distribution_panels, has_objects, metric_titles
from .panels import RUN_COLOURS, Panel, render_png, render_svg
from .stack import Stack

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # names of runs in figures and columns; also their largest number


@dataclass(frozen=True)
class Setting:
    """A value of a run's configuration."""

    id: str
    value: str
    why: str = ""
    is_changed: bool = False  # whether the bundle that the run was made of has another value


@dataclass(frozen=True)
class RunResults:
    """Content of the page about one run; no text may name a patient or a path."""

    name: str
    cases: Sequence[CaseScores] = ()  # results of `evaluate_case`
    histories: Histories = field(default_factory=dict)  # of a cross-validation by fold
    facts: Mapping[str, str] = field(default_factory=dict)  # in the order of the page
    settings: Sequence[Setting] = ()
    notes: Sequence[str] = ()  # what the reader must know before believing the numbers
    trained_on: frozenset[str] = frozenset()  # names of cases that the network has seen in training
    groups: Mapping[str, str] = field(default_factory=dict)  # group of each case, such as its fold
    cleaning: Sequence[Sequence[str]] = ()  # header and rows of the postprocessing that was tried
    reliability: Mapping[str, Any] = field(default_factory=dict)  # of `reliability_panels`; empty if not calibrated
    unit: str = "mm"  # of distances; "px" of pictures without a scale


def lowest_dice(runs: Sequence[RunResults]) -> dict[str, float]:
    """Return the lowest mean Dice (of objects: mean AP) of any run by case, the worst case first.

    Cases without a number are last, with 1.
    """
    lowest: dict[str, float] = {}
    for case in (case for run in runs for case in run.cases):
        score = case.get("mean_ap", case["mean_dice"])
        dice = score if math.isfinite(score) else math.inf
        lowest[case["name"]] = min(dice, lowest.get(case["name"], math.inf))
    ordered = sorted(lowest.items(), key=lambda entry: (entry[1], entry[0]))
    return {name: dice if math.isfinite(dice) else 1.0 for name, dice in ordered}


def class_names(runs: Sequence[RunResults]) -> list[str]:
    """Return the names of the classes that were evaluated in any run, in order."""
    return list(dict.fromkeys(name for run in runs for case in run.cases for name in case["classes"]))


def write_figures(folder: str | os.PathLike[str], runs: Sequence[RunResults]) -> list[Path]:
    """Write the figures of the page as PNG files and return their paths."""
    sections = _figures(dict(zip(LETTERS, runs, strict=False))).items()
    return [write_atomically(Path(folder) / f"{section}.png", render_png(panels)) for section, panels in sections]


def write_report(
    path: str | os.PathLike[str],
    runs: Sequence[RunResults],
    *,
    title: str,
    stacks: Mapping[str, Stack] | None = None,
    maps: Mapping[str, Sequence[str]] | None = None,
    unions: Sequence[Sequence[int]] = (),
    layers: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page atomically and return its path. All text is escaped; pictures are embedded.

    Args:
        path: the HTML file.
        runs: one, or several to compare; at most 26.
        title: headline.
        stacks: small volumes by case name; other cases are only in the table. Label maps are in the numbers of
            :class:`ClassCodes` for `class_names`.
        maps: for every stack the letters of the runs whose predictions follow the reference. Default: all runs.
        unions: :attr:`ClassCodes.unions`, if classes overlap.
        layers: `name`, `colour` and whether it is `marked` in the reference, for the values of label maps that show
            objects. Default: the classes.
    """
    lettered = dict(zip(LETTERS, runs, strict=False))
    names, lowest, panels = class_names(runs), lowest_dice(runs), _figures(lettered)
    colours, places = class_colours(names), {name: index for index, name in enumerate(lowest)}
    measured = {letter: run.cases for letter, run in lettered.items() if run.cases}
    points = {gid: cases for section in panels.values() for panel in section for gid, cases in panel.points.items()}
    document = {
        "cases": list(lowest),
        "classes": layers or [{"name": name, "colour": colours[name]} for name in names],
        "unions": [list(union) for union in unions],
        "points": {gid: [places[case] for case in cases] for gid, cases in points.items()},
        "runs": [{"letter": letter, "name": run.name} for letter, run in lettered.items()],
    }
    pictures = {
        places[name]: _json({**stack.document(), "letters": list((maps or {}).get(name, lettered))})
        for name, stack in (stacks or {}).items()
        if name in places
    }
    svgs = {
        section: [
            (panel.inches, Markup(render_svg(panel, key=f"{section}{place}"))) for place, panel in enumerate(them)
        ]
        for section, them in panels.items()
    }
    text = render_page(
        "page.html",
        title=title,
        finite=math.isfinite,
        nan=math.nan,
        runs=lettered,
        run_colours=dict(zip(LETTERS, RUN_COLOURS * 5, strict=False)),
        summaries={letter: summarise(cases) for letter, cases in measured.items()},
        classes=colours,
        em_keys=list(dict.fromkeys(key for cases in measured.values() for case in cases for key in case.get("em", {}))),
        em_titles=EM_TITLES,
        comparisons=compare(measured) if len(measured) > 1 else [],
        metrics=metric_titles(_unit(runs), objects=has_objects(measured)),
        objects=has_objects(measured),
        unit=_unit(runs),
        order=list(lowest),
        lowest=lowest,
        scores={letter: {case["name"]: case for case in cases} for letter, cases in measured.items()},
        settings=_settings(runs),
        svgs=svgs,
        document=_json(document),
        pictures=dict(sorted(pictures.items())),
    )
    return write_atomically(path, text)


def render_page(template: str, *, title: str, **values: Any) -> str:
    """Return a page of a template of this package, without empty lines; all text is escaped."""
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined}
    loader = PackageLoader("medunet.reports", package_path="")
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters |= {"number": number, "p_value": p_value}
    text = environment.get_template(template).render(title=title, version=__version__, **values)
    return re.sub(r"\n\s*\n+", "\n", text)


def _figures(runs: Mapping[str, RunResults]) -> dict[str, list[Panel]]:
    """Return the panels by section: `scores`, `differences` if there are several runs, `reliability`, and `curves`."""
    cases = {letter: run.cases for letter, run in runs.items() if run.cases}
    unit = _unit(runs.values())
    sections = {"scores": distribution_panels(cases, names=class_names([*runs.values()]), unit=unit) if cases else []}
    if len(cases) > 1:
        sections["differences"] = [
            difference_panel(
                f"{metric_titles(unit, objects=has_objects(cases))[metric]}, {comparison.title}",
                comparison.differences(metric),
                key=f"difference-{comparison.other}-{metric}",
                colour=RUN_COLOURS[LETTERS.index(comparison.other) % len(RUN_COLOURS)],
            )
            for comparison in compare(cases)
            if comparison.cases
            for metric in compared_metrics(cases)
        ]
    several = len(runs) > 1
    sections["reliability"] = reliability_panels({letter * several: run.reliability for letter, run in runs.items()})
    histories = {
        " ".join(filter(None, (letter * several, name if len(run.histories) > 1 else ""))): history
        for letter, run in runs.items()
        for name, history in run.histories.items()
    }
    sections["curves"] = curve_panels(histories)
    return {section: panels for section, panels in sections.items() if panels}


def _unit(runs: Iterable[RunResults]) -> str:
    """Return the unit of distances in all runs."""
    units = {run.unit for run in runs if run.cases}
    return units.pop() if len(units) == 1 else "mm or px" if units else "mm"


def _settings(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """Return one row per id, with the different reasons of several runs."""
    by_run = [{setting.id: setting for setting in run.settings} for run in runs]
    rows = []
    for id_ in dict.fromkeys(id_ for settings in by_run for id_ in settings):
        of_runs = [settings.get(id_, Setting(id_, "")) for settings in by_run]
        values = [setting.value for setting in of_runs]
        why = " / ".join(dict.fromkeys(setting.why for setting in of_runs if setting.why))
        changed = any(setting.is_changed for setting in of_runs)
        rows.append({"id": id_, "settings": values, "why": why, "changed": changed, "differs": len(set(values)) > 1})
    return rows


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number as text; a dash for NaN and infinity.

    Examples:
        >>> number(0.98765, 3), number(-0.00001, 3, signed=True), number(math.nan, 2)
        ('0.988', '0.000', '-')
    """
    if not math.isfinite(value):
        return "-"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def p_value(value: float) -> str:
    """Return a p-value as papers print it.

    Examples:
        >>> p_value(0.00001), p_value(0.0312), p_value(math.nan)
        ('< 0.001', '0.031', 'too few cases')
    """
    if not math.isfinite(value):
        return "too few cases"
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _json(document: Any) -> Markup:
    """Return JSON that cannot end the script element that contains it."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&"}))
