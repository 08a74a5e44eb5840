"""Two runs on the same cases: differences per case, and whether they could be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

MIN_PAIRS = 6  # with fewer differing cases the exact two-sided test cannot reach 0.05 (2 / 2^5 = 0.06)
RESAMPLES = 4000
CONFIDENCE = (2.5, 97.5)  # percentiles of the bootstrapped means


@dataclass(frozen=True)
class PairedDifference:
    """How the second run differs from the first in one metric, over the cases that both have."""

    cases: tuple[str, ...]
    """Names, in the order of the first run."""
    differences: tuple[float, ...]
    """Second minus first."""
    mean: float
    """Mean of the differences; NaN without cases, as `low` and `high`."""
    low: float
    """Lower end of the 95 % interval of the mean (bootstrap over cases)."""
    high: float
    """Upper end of this interval."""
    better: int
    """Number of cases in which the second run is better."""
    worse: int
    """Number of cases in which it is worse."""
    p_value: float
    """Wilcoxon's signed-rank test, two-sided, on the cases that differ: 1 if none differs, NaN for < `MIN_PAIRS`."""


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], *, higher_is_better: bool = True
) -> PairedDifference:
    """Compare two runs case by case.

    Args:
        first: the metric of the first run by case name; NaN if a case has none.
        second: the metric of the second run by case name.
        higher_is_better: True for Dice, False for a distance.

    Example:
        >>> first = {f"case {n}": 0.80 + n / 100 for n in range(8)}
        >>> second = {name: value + 0.01 + n / 1000 for n, (name, value) in enumerate(first.items())}
        >>> result = paired_difference(first, second)
        >>> result.better, result.worse, round(result.mean, 4), round(result.p_value, 4)
        (8, 0, 0.0135, 0.0078)
    """
    pairs = {name: second[name] - value for name, value in first.items() if name in second}
    pairs = {name: difference for name, difference in pairs.items() if math.isfinite(difference)}
    differences = np.array(list(pairs.values()), dtype=float)
    gain = differences if higher_is_better else -differences
    mean = low = high = math.nan
    if differences.size:
        mean = float(differences.mean())
        drawn = np.random.default_rng(0).integers(differences.size, size=(RESAMPLES, differences.size))
        low, high = (float(end) for end in np.percentile(differences[drawn].mean(axis=1), CONFIDENCE))
    return PairedDifference(
        cases=tuple(pairs),
        differences=tuple(differences.tolist()),
        mean=mean,
        low=low,
        high=high,
        better=int((gain > 0).sum()),
        worse=int((gain < 0).sum()),
        p_value=_signed_rank(differences),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979); NaN stays and does not count.

    Example:
        >>> holm([0.01, math.nan, 0.04, 0.03])
        [0.03, nan, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p_values)
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def _signed_rank(differences: npt.NDArray[np.float64]) -> float:
    differing = differences[differences != 0]
    if differences.size and not differing.size:
        return 1.0
    if differing.size < MIN_PAIRS:
        return math.nan
    return float(stats.wilcoxon(differing).pvalue)
