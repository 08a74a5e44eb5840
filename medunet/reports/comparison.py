"""Runs side by side: what differs case by case on the cases that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medunet.metrics import CaseScores, PairedDifference, holm, lower_is_better, paired_difference

from .distributions import class_scores

REFERENCE_SIZES = ("volume_ref_ml", "area_ref_mm2")
SAME_REFERENCE = 1e-3
"""Relative difference of a reference's size up to which two runs were measured against the same one."""

MEAN = "all classes"
"""Row of the mean over the classes."""

COMPARED = ("dice", "msd_mm")


@dataclass(frozen=True)
class ComparedScore:
    """One row of the comparison.

    Args:
        name: of the class, or `MEAN`.
        metric: a key of `METRICS`.
        found: the paired differences.
        corrected: its p-value after Holm's correction over all rows of the page.
    """

    name: str
    metric: str
    found: PairedDifference
    corrected: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """A later run against the first.

    Args:
        first: letter of the run that is subtracted.
        other: letter of the other run.
        rows: scores that both have.
        cases: how many cases they share.
        left_out: cases of both runs that were measured against different references.
    """

    first: str
    other: str
    rows: tuple[ComparedScore, ...]
    cases: int
    left_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is subtracted from what."""
        return f"{self.other} - {self.first}"

    def differences(self, metric: str) -> dict[str, PairedDifference]:
        """Differences of one metric by class."""
        return {row.name: row.found for row in self.rows if row.metric == metric}


def compare(runs: dict[str, Sequence[CaseScores]]) -> list[Comparison]:
    """Compare every later run with the first one.

    Args:
        runs: cases by letter, in order.
    """
    (first, ours), *others = runs.items()
    comparisons = [_compare(first, ours, other, theirs) for other, theirs in others]
    corrected = iter(holm([row.found.p_value for found in comparisons for row in found.rows]))
    return [
        Comparison(
            found.first,
            found.other,
            tuple(ComparedScore(row.name, row.metric, row.found, next(corrected)) for row in found.rows),
            found.cases,
            found.left_out,
        )
        for found in comparisons
    ]


def _compare(first: str, ours: Sequence[CaseScores], other: str, theirs: Sequence[CaseScores]) -> Comparison:
    by_name = {case["name"]: case for case in theirs}
    both = [case for case in ours if case["name"] in by_name]
    left_out = tuple(case["name"] for case in both if not _is_same_reference(case, by_name[case["name"]]))
    both = [case for case in both if case["name"] not in left_out]
    counterparts = [by_name[case["name"]] for case in both]
    known = {name for case in counterparts for name in case["classes"]}
    names = [name for name in dict.fromkeys(name for case in both for name in case["classes"]) if name in known]
    rows = [
        ComparedScore(name, metric, paired_difference(a, b, higher_is_better=not lower_is_better(metric)))
        for metric in COMPARED
        for name in names
        for a, b in [(class_scores(both, name, metric), class_scores(counterparts, name, metric))]
    ]
    if len(names) > 1:
        means = [{case["name"]: case["mean_dice"] for case in cases} for cases in (both, counterparts)]
        rows.insert(0, ComparedScore(MEAN, "dice", paired_difference(*means)))
    return Comparison(first, other, tuple(rows), len(both), left_out)


def _is_same_reference(one: CaseScores, other: CaseScores) -> bool:
    for name in one["classes"].keys() & other["classes"].keys():
        for key in REFERENCE_SIZES:
            sizes = [float(scores.get(key, 0.0)) for scores in (one["classes"][name], other["classes"][name])]  # type: ignore[arg-type] # a number
            if not math.isclose(*sizes, rel_tol=SAME_REFERENCE, abs_tol=1e-9):
                return False
    return True
