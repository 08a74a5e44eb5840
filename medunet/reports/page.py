"""One self-contained HTML page about a run: no network, no other files, light and dark, wide and narrow."""

from __future__ import annotations

import base64
import html
import math
import os
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

from medunet import __version__
from medunet.errors import DataError
from medunet.files import write_atomically
from medunet.metrics.evaluation import CaseScores, ClassScores, Summary, summarise
from medunet.metrics.overlap import Status

from .colours import class_colours
from .curves import EpochRecord, panels_of, render_curves

MAX_OVERLAYS = 24
"""Pictures in one page: at about 200 kB each the page still opens on a phone."""

WIDE = 1.5
"""Width over height beyond which a picture takes the whole width of the page: three planes, not one slice."""

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_SIZE = slice(16, 24)
"""Where a PNG keeps its width and height (ISO/IEC 15948, IHDR)."""

EM_NAMES = {
    "v_rand": "V<sub>rand</sub>",
    "v_info": "V<sub>info</sub>",
    "pixel_error": "pixel error",
    "warping_error": "warping error",
}

FAILURES: tuple[Status, ...] = ("missed", "spurious")

CLASS_COLUMNS = ("Dice", "HD95", "MSD")
"""Columns of the table that each class has."""

NOTE = (
    "Dice counts overlap (1 is perfect). HD95 and MSD are the 95th percentile and the mean of the distances between "
    "the surfaces, in mm. A class that is in neither image is left out of all means; one that was missed or invented "
    "counts as Dice 0 and has no distance."
)


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: Mapping[str, object],
    history: Sequence[EpochRecord] = (),
    cases: Sequence[CaseScores] = (),
    overlays: Mapping[str, str | os.PathLike[str] | bytes] | None = None,
    max_overlays: int = MAX_OVERLAYS,
) -> Path:
    """Write the page and return its path. All text is escaped; pictures are embedded.

    Args:
        path: the HTML file; it appears whole or not at all.
        title: headline.
        summary: what was run, name -> value, shown in this order.
        history: one record an epoch, for the curves.
        cases: what `evaluate_case` returned for each case; the table and the overlays begin with the worst.
        overlays: case name -> PNG (file or content).
        max_overlays: how many of them are shown.

    Raises:
        DataError: an overlay cannot be read or is not a PNG.
    """
    ordered = sorted(cases, key=lambda case: (math.isnan(case["mean_dice"]), case["mean_dice"], case["name"]))
    sections = [
        _section("What was run", _key_values(summary)) if summary else "",
        _section("Training", _curves(history)) if history else "",
        _section("Cases", f"<p>{html.escape(NOTE)}</p>" + _table(ordered)) if ordered else "",
        _gallery(ordered, overlays, max_overlays) if overlays else "",
    ]
    page = Template(_part("page.html")).substitute(
        title=html.escape(title),
        css=_part("page.css"),
        js=_part("page.js"),
        tiles=_tiles(summarise(ordered)) if ordered else "",
        sections="\n".join(filter(None, sections)),
        footer=f"medunet {html.escape(__version__)}",
    )
    return write_atomically(path, page)


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(heading)}</h2>\n{content}\n</section>"


def _tiles(summary: Summary) -> str:
    """Return the headline numbers: overall Dice, then each class, then EM scores."""
    tiles = []
    if len(summary["classes"]) > 1:
        tiles.append(_tile("mean Dice", summary["mean_dice"], f"{_count(summary['cases'], 'case')}"))
    colours = class_colours(summary["classes"])
    for name, entry in summary["classes"].items():
        distance = entry["scores"]["hd95_mm"]["median"]
        details = [f"HD95 {_number(distance, 1)} mm (median)"] if math.isfinite(distance) else []
        status = entry["status"]
        details += [f"{word} in {_count(status[word], 'case')}" for word in FAILURES if status[word]]
        label = f'<span class="swatch" style="background:{colours[name]}"></span>{html.escape(name)} Dice'
        tiles.append(_tile(label, entry["scores"]["dice"]["mean"], "<br>".join(details)))
    for key, statistics in summary.get("em", {}).items():
        tiles.append(_tile(EM_NAMES.get(key, html.escape(key)), statistics["mean"], "", digits=4))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(label: str, value: float, detail: str, *, digits: int = 3) -> str:
    return (
        f'<div class="tile"><div class="name">{label}</div><div class="value">{_number(value, digits)}</div>'
        f'<div class="detail">{detail}</div></div>'
    )


def _key_values(summary: Mapping[str, object]) -> str:
    rows = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>" for key, value in summary.items()
    )
    return f'<div class="card"><dl>{rows}</dl></div>'


def _curves(history: Sequence[EpochRecord]) -> str:
    """Return each panel twice; the browser takes the picture that fits its appearance, and stacks them on a phone."""
    pictures = []
    for panel in panels_of(history):
        light, dark = (_data_url(render_curves(history, panels=(panel,), dark=dark)) for dark in (False, True))
        alt = f"{panel} over {_count(len(history), 'epoch')}"
        pictures.append(
            f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
            f'<img src="{light}" alt="{alt}"></picture>'
        )
    return f'<div class="card curves">{"".join(pictures)}</div>'


def _table(cases: Sequence[CaseScores]) -> str:
    """Return the table of cases: a group of columns for each class, sorted by a click on a column's head."""
    names = list(dict.fromkeys(name for case in cases for name in case["classes"]))
    em = list(dict.fromkeys(key for case in cases for key in case.get("em", {})))
    colours = class_colours(names)
    groups = "".join(
        f'<th class="group first" colspan="{len(CLASS_COLUMNS)}" scope="colgroup">'
        f'<span class="swatch" style="background:{colours[name]}"></span>{html.escape(name)}</th>'
        for name in names
    )
    if em:
        groups += f'<th class="group first" colspan="{len(em)}" scope="colgroup">EM</th>'
    titles = [
        "case",
        "mean Dice",
        *(CLASS_COLUMNS * len(names)),
        *(EM_NAMES.get(key, html.escape(key)) for key in em),
    ]
    firsts = {2 + len(CLASS_COLUMNS) * place for place in range(len(names) + bool(em))}
    heads = "".join(
        f'<th data-column="{place}" scope="col"{_first(place in firsts)}{_sorted(place)}>'
        f'<button type="button">{text}</button></th>'
        for place, text in enumerate(titles)
    )
    rows = "".join(_row(case, names, em) for case in cases)
    return (
        f'<div class="card scroll"><table><thead><tr><th></th><th></th>{groups}</tr>\n<tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )


def _row(case: CaseScores, names: Sequence[str], em: Sequence[str]) -> str:
    name = html.escape(case["name"])
    cells = [f'<td data-value="{name}" title="{name}">{name}</td>', _cell(case["mean_dice"], 3)]
    for label in names:
        scores = case["classes"].get(label)
        if scores is None:
            cells += [_cell(math.nan, 3, first=title == CLASS_COLUMNS[0]) for title in CLASS_COLUMNS]
        else:
            cells += _class_cells(scores)
    found = case.get("em", {})
    cells += [_cell(found.get(key, math.nan), 4, first=place == 0) for place, key in enumerate(em)]
    return f"<tr>{''.join(cells)}</tr>\n"


def _class_cells(scores: ClassScores) -> list[str]:
    word = "" if scores["status"] == "both" else scores["status"]
    return [
        _cell(scores["dice"], 3, word=word, first=True),
        _cell(scores["hd95_mm"], 2, word=word),
        _cell(scores["msd_mm"], 2, word=word),
    ]


def _cell(value: float, digits: int, *, word: str = "", first: bool = False) -> str:
    """Return one number; where there is none, the word that says why."""
    if math.isfinite(value):
        return f'<td data-value="{value!r}"{_first(first)}>{_number(value, digits)}</td>'
    return f'<td data-value="" class="word{" first" if first else ""}">{html.escape(word) or "-"}</td>'


def _first(first: bool) -> str:
    return ' class="first"' if first else ""


def _sorted(place: int) -> str:
    return ' aria-sort="ascending"' if place == 1 else ""  # the page begins with the worst mean Dice


def _gallery(
    cases: Sequence[CaseScores], overlays: Mapping[str, str | os.PathLike[str] | bytes], max_overlays: int
) -> str:
    """Return the pictures: worst case first, then those without scores."""
    dice = {case["name"]: case["mean_dice"] for case in cases}
    names = [case["name"] for case in cases if case["name"] in overlays]
    names += [name for name in overlays if name not in dice]
    figures = []
    for name in names[:max_overlays]:
        score = f" &middot; mean Dice {_number(dice[name], 3)}" if name in dice else ""
        png = _png(name, overlays[name])
        width, height = struct.unpack(">II", png[PNG_SIZE])
        shape = "" if width > WIDE * height else ' class="narrow"'
        figures.append(
            f'<figure{shape}><img src="{_data_url(png)}" width="{width}" height="{height}" '
            f'alt="Overlay of {html.escape(name)}"><figcaption><b>{html.escape(name)}</b>{score}</figcaption></figure>'
        )
    note = "Coloured lines are the prediction, dashed white lines the reference; the worst case comes first."
    if len(names) > max_overlays:
        note += f" {max_overlays} of {len(names)} cases are shown."
    return _section("Overlays", f"<p>{html.escape(note)}</p>" + '<div class="gallery">' + "\n".join(figures) + "</div>")


def _png(name: str, overlay: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(overlay, bytes):
        content, file = overlay, None
    else:
        file = os.fspath(overlay)
        try:
            content = Path(file).read_bytes()
        except OSError as error:
            raise DataError(f"overlay of {name} cannot be read: {error.strerror}", file=file) from error
    if not content.startswith(PNG_START) or len(content) < PNG_SIZE.stop:
        raise DataError(f"overlay of {name} is not a PNG", file=file)
    return content


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
