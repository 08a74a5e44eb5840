"""Scores by subgroup, such as site, scanner, sex or size, and by pairs of annotators."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medunet.errors import DataError
from medunet.io.limits import system_errors
from medunet.metrics import CaseScores, Statistics
from medunet.metrics.evaluation import statistics

MOST_VALUES = 6  # different numbers of a column; one with more is divided at its median
UNKNOWN = "unknown"  # value of a case whose cell is empty or missing


def read_subgroups(path: Path, cases: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the value of each case by column from a CSV file with the column `case` and others.

    Raises:
        DataError: unreadable, no column `case` or no other, a case with two rows, or none of the cases.
    """
    with system_errors(path), path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = list(csv.DictReader(file, skipinitialspace=True, restval=""))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"invalid CSV: {error}", file=path) from error
    names = [row.get("case", "") for row in rows]
    columns = [name for name in (rows[0] if rows else ()) if name not in ("case", None)]
    if not columns or not any(names):
        raise DataError("columns are missing", file=path, received=", ".join(columns), expected="case and others")
    if len(set(names)) < len(names):
        raise DataError("a case must have one row", file=path, received=max(names, key=names.count))
    if not set(names) & set(cases):
        raise DataError("the file has none of the evaluated cases", file=path, received=names[0], expected=cases[0])
    known = dict(zip(names, rows, strict=True))
    return {
        column: _divided({case: (known.get(case, {}).get(column) or "").strip() or UNKNOWN for case in cases})
        for column in columns
    }


def _divided(values: dict[str, str]) -> dict[str, str]:
    """Return the values of a column, or for many different numbers whether they are above their median."""
    try:
        numbers = {case: float(value) for case, value in values.items() if value != UNKNOWN}
    except ValueError:
        return values
    if len(set(numbers.values())) <= MOST_VALUES:
        return values
    middle = float(np.median(list(numbers.values())))
    return {c: UNKNOWN if c not in numbers else f"{'>' if numbers[c] > middle else '<='} {middle:g}" for c in values}


def score_subgroups(
    results: Sequence[CaseScores], columns: Mapping[str, Mapping[str, str]], groups: Mapping[str, str]
) -> tuple[dict[str, dict[str, Statistics]], dict[str, str]]:
    """Return the mean Dice of the cases by column and value, and the column and value of the weakest subgroup."""
    found: dict[str, dict[str, Statistics]] = {}
    for column, values in columns.items():
        for value in sorted(set(values.values())):
            part = [one for one in results if values[one["name"]] == value]
            names = [groups.get(one["name"], one["name"]) for one in part]
            found.setdefault(column, {})[value] = statistics([one["mean_dice"] for one in part], names)
    means = {(column, value): one["mean"] for column, of in found.items() for value, one in of.items() if one["n"]}
    if not means:
        return found, {}
    column, value = min(means, key=lambda key: means[key])
    return found, {"column": column, "value": value}
