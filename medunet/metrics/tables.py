"""Scores as files, written atomically: a CSV for spreadsheets, a JSON for programs."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medunet.config import plain, strict_json
from medunet.files import write_atomically

from .evaluation import CaseScores, Summary, summarise

CSV_NAME = "metrics.csv"
JSON_NAME = "metrics.json"


def write_tables(
    results: Sequence[CaseScores], folder: str | os.PathLike[str], *, summary: Summary | None = None
) -> tuple[Path, Path]:
    """Write `metrics.csv` and `metrics.json` and return their paths.

    The CSV has one row per case and class, with empty cells for NaN; EM scores are repeated in each row of their case.
    The JSON is `{"summary": ..., "cases": [...]}` with null for NaN, because NaN is not JSON.

    Args:
        results: what `evaluate_case` returned for each case.
        folder: created if it does not exist.
        summary: `summarise(results)`, if it is known.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"summary": summary or summarise(results), "cases": list(results)}
    rows = (
        {"case": result["name"], "class": label, **scores, **result.get("em", {})}
        for result in results
        for label, scores in result["classes"].items()
    )
    table = write_atomically(folder / CSV_NAME, rows_text(rows))
    return table, write_atomically(folder / JSON_NAME, strict_json(document))


def rows_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as CSV; the columns are the keys of all rows, in the order in which they first occur."""
    rows = list(rows)
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain(rows))  # None is an empty cell
    return text.getvalue()
