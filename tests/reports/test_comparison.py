"""Runs are compared on the cases that they share, against the same reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medunet.metrics import CaseScores, evaluate_case
from medunet.reports import compare
from medunet.reports.comparison import MEAN

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def case(name: str, found: int, *, size: int = 10) -> CaseScores:
    pred, ref = np.zeros((9, 12), int), np.zeros((9, 12), int)
    ref[4, :size], ref[7, :5] = 1, 2
    pred[4, :found], pred[7, :5] = 1, 2
    return evaluate_case(pred, ref, spacing_mm=(1, 1), labels=LABELS, name=name)


def test_differences_are_second_minus_first_by_class_and_in_the_mean() -> None:
    first = [case(f"case {n}", 3 + n % 3) for n in range(8)]
    second = [case(f"case {n}", 8) for n in reversed(range(8))]
    (found,) = compare({"A": first, "B": second})
    assert (found.title, found.cases, found.left_out) == ("B - A", 8, ())
    rows = {(row.name, row.metric): row for row in found.rows}
    assert next(iter(rows)) == (MEAN, "dice")
    liver = rows["liver", "dice"].difference
    assert liver.differences[0] == pytest.approx(16 / 18 - 6 / 13)
    assert liver.better == 8
    assert rows[MEAN, "dice"].difference.mean == pytest.approx(liver.mean / 2)
    assert rows["spleen", "dice"].difference.p_value == 1.0
    assert rows["liver", "msd_mm"].difference.better == 8
    assert rows["liver", "dice"].corrected >= rows["liver", "dice"].difference.p_value


def test_a_case_with_another_reference_is_not_compared() -> None:
    (found,) = compare({"A": [case("a", 5), case("b", 5)], "B": [case("a", 5, size=11), case("b", 6)]})
    assert found.left_out == ("a",)
    assert found.cases == 1


def test_runs_without_common_cases_have_nothing_to_compare() -> None:
    (found,) = compare({"A": [case("a", 5)], "B": [case("b", 5)]})
    assert (found.cases, found.rows) == (0, ())


def test_every_later_run_is_compared_with_the_first() -> None:
    runs = {letter: [case("a", found)] for letter, found in (("A", 5), ("B", 6), ("C", 7))}
    assert [found.title for found in compare(runs)] == ["B - A", "C - A"]
    assert math.isnan(compare(runs)[1].rows[0].difference.p_value)
