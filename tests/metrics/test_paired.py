"""Differences case by case: counted and tested by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from medunet.metrics import holm, paired_difference


def numbers(values: list[float]) -> dict[str, float]:
    return {f"case {place}": value for place, value in enumerate(values)}


def test_six_cases_that_all_rise_have_the_smallest_p_value_that_six_can_have() -> None:
    result = paired_difference(numbers([0.0] * 6), numbers([1.0, 2, 3, 4, 5, 6]))
    assert result.differences == (1, 2, 3, 4, 5, 6)
    assert result.p_value == pytest.approx(2 / 2**6)  # all signs alike: 2 of 64 ways
    assert (result.better, result.worse, result.mean) == (6, 0, 3.5)
    assert result.low < 3.5 < result.high


def test_a_smaller_distance_is_better() -> None:
    result = paired_difference(numbers([3.0, 2.0, 1.0]), numbers([1.0, 2.0, 2.0]), higher_is_better=False)
    assert (result.better, result.worse) == (1, 1)


def test_only_cases_that_both_have_with_a_number_count() -> None:
    first = {"a": 0.5, "b": math.nan, "c": 0.7, "d": 0.9}
    second = {"c": 0.8, "b": 0.2, "a": math.nan, "e": 1.0}
    result = paired_difference(first, second)
    assert result.cases == ("c",)
    assert result.differences == pytest.approx((0.1,))


def test_too_few_cases_have_no_p_value_and_equal_runs_have_one() -> None:
    assert math.isnan(paired_difference(numbers([0.0] * 5), numbers([1.0, 2, 3, 4, 5])).p_value)
    assert paired_difference(numbers([0.5] * 9), numbers([0.5] * 9)).p_value == 1.0
    nothing = paired_difference({}, {})
    assert math.isnan(nothing.mean) and math.isnan(nothing.p_value)


def test_the_test_is_wilcoxons_on_the_cases_that_differ() -> None:
    changes = [0.0, 0.02, -0.01, 0.05, 0.03, 0.04, -0.015, 0.06, 0.0]
    result = paired_difference(numbers([0.8] * 9), numbers([0.8 + change for change in changes]))
    expected = stats.wilcoxon([round(change, 3) for change in changes if change]).pvalue
    assert result.p_value == pytest.approx(expected)
    assert result == paired_difference(numbers([0.8] * 9), numbers([0.8 + change for change in changes]))


def test_holms_correction_by_hand() -> None:
    assert holm([0.02, 0.005, 0.5]) == pytest.approx([0.04, 0.015, 0.5])
    assert holm([0.4, 0.3]) == pytest.approx([0.6, 0.6])
    assert holm([]) == []
