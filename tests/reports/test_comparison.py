"""Runs are compared on the cases that they share, against the same reference."""

import math

import pytest
from scores import case

from medunet.reports.comparison import MEAN, compare


def test_differences_are_second_minus_first_by_class_and_in_the_mean() -> None:
    first = [case(f"case {n}", 3 + n % 3, spleen=5) for n in range(8)]
    second = [case(f"case {n}", 8, spleen=5) for n in reversed(range(8))]
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


def test_only_common_cases_with_the_same_reference_are_compared_with_the_first_run() -> None:
    runs = {"A": [case("a", 5), case("b", 5)], "B": [case("a", 5, size=11), case("b", 6)], "C": [case("c", 5)]}
    second, third = compare(runs)
    assert (second.title, second.left_out, second.cases) == ("B - A", ("a",), 1)
    assert math.isnan(second.rows[0].difference.p_value)  # too few cases
    assert (third.title, third.cases, third.rows) == ("C - A", 0, ())
