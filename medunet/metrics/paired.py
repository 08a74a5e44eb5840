"""Two runs on the same cases: differences per case, and whether they could be chance."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

MIN_PAIRS = 6  # with fewer differing cases the exact two-sided test cannot reach 0.05 (2 / 2^5 = 0.06)
RESAMPLES = 4000
CONFIDENCE = (2.5, 97.5)  # percentiles of the bootstrapped means

_LOWER_IS_BETTER = {"loss", "hd95", "msd", "seconds", "wait", "error", "warping", "fp"}  # words in the names of metrics
_OVERLAP = re.compile(r"(best_|kept_|out_of_fold_)*(val_)?(mean_)?(dice|iou)(_|$)")  # the name of a class may follow


@dataclass(frozen=True)
class PairedDifference:
    """How the second run differs from the first in one metric, over the cases that both have.

    Args:
        cases: names, in the order of the first run.
        differences: second minus first.
        mean: mean of the differences; NaN without cases, as `low` and `high`.
        low: lower end of the 95 % interval of the mean (bootstrap over cases).
        high: upper end of this interval.
        better: number of cases in which the second run is better.
        worse: number of cases in which it is worse.
        p_value: Wilcoxon's signed-rank test, two-sided, on the cases that differ: 1 if none differs, NaN for fewer
            than `MIN_PAIRS`.
    """

    cases: tuple[str, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    better: int
    worse: int
    p_value: float


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], *, higher_is_better: bool = True
) -> PairedDifference:
    """Compare two runs case by case.

    Args:
        first: the metric of the first run by case name; NaN if a case has none.
        second: the metric of the second run by case name.
        higher_is_better: True for Dice, False for a distance.

    Examples:
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


def _signed_rank(differences: npt.NDArray[np.float64]) -> float:
    differing = differences[differences != 0]
    if differences.size and not differing.size:
        return 1.0
    return float(stats.wilcoxon(differing).pvalue) if differing.size >= MIN_PAIRS else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple testing (Holm 1979); NaN is unchanged and does not count.

    Examples:
        >>> holm([0.01, math.nan, 0.04, 0.03])
        [0.03, nan, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p_values)
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        corrected[place] = largest = max(largest, min(1.0, p * (len(order) - rank)))
    return corrected


def lower_is_better(name: str) -> bool:
    """Return whether lower values of a metric are better, by its name in a table or in MLflow.

    Examples:
        >>> [lower_is_better(name) for name in ("loss", "loss/dice", "out_of_fold_hd95_mm_liver", "epoch_seconds")]
        [True, True, True, True]
        >>> [lower_is_better(name) for name in ("val_mean_dice", "val_dice_loss_of_signal", "steps_per_second")]
        [False, False, False]
    """
    return not _OVERLAP.match(name) and not _LOWER_IS_BETTER.isdisjoint(re.split(r"[_/]", name))
