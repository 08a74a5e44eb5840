"""Runs side by side: what differs case by case on the cases that they share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medunet.metrics import CaseScores, PairedDifference, holm, lower_is_better, paired_difference

from .distributions import class_scores, has_objects

REFERENCE_SIZES = ("volume_ref_ml", "area_ref_mm2")
SAME_REFERENCE = 1e-3  # relative difference of a reference's size up to which two references count as one
MEAN = "all classes"  # row of the mean over the classes


@dataclass(frozen=True)
class ComparedScore:
    """One row of a comparison."""

    name: str  # of the class, or `MEAN`
    metric: str
    difference: PairedDifference
    corrected: float = math.nan  # p-value after Holm's correction over all rows of the page


@dataclass(frozen=True)
class Comparison:
    """Comparison of a later run with the first."""

    first: str  # letter of the run that is subtracted
    other: str
    rows: tuple[ComparedScore, ...]  # scores that both have
    cases: int  # number of cases that they share
    left_out: tuple[str, ...] = ()  # cases of both runs that were measured against different references

    @property
    def title(self) -> str:
        """The letters of the two runs, as a difference."""
        return f"{self.other} - {self.first}"

    def differences(self, metric: str) -> dict[str, PairedDifference]:
        """Return the differences of one metric by class."""
        return {row.name: row.difference for row in self.rows if row.metric == metric}


def compared_metrics(runs: Mapping[str, Sequence[CaseScores]]) -> tuple[str, str]:
    """Return the metrics that are compared case by case."""
    return ("mean_ap", "ap_50") if has_objects(runs) else ("dice", "msd_mm")


def compare(runs: Mapping[str, Sequence[CaseScores]]) -> list[Comparison]:
    """Compare every later run with the first one; `runs` has their cases by letter, in order."""
    (first, ours), *others = runs.items()
    comparisons = [_compare(first, ours, other, theirs) for other, theirs in others]
    corrected = iter(holm([row.difference.p_value for one in comparisons for row in one.rows]))
    rows = [tuple(replace(row, corrected=next(corrected)) for row in one.rows) for one in comparisons]
    return [replace(one, rows=new) for one, new in zip(comparisons, rows, strict=True)]


def _compare(first: str, ours: Sequence[CaseScores], other: str, theirs: Sequence[CaseScores]) -> Comparison:
    by_name = {case["name"]: case for case in theirs}
    pairs = [(case, by_name[case["name"]]) for case in ours if case["name"] in by_name]
    left_out = tuple(one["name"] for one, two in pairs if not _is_same_reference(one, two))
    both, counterparts = ([pair[run] for pair in pairs if pair[0]["name"] not in left_out] for run in (0, 1))
    known = {name for case in counterparts for name in case["classes"]}
    names = [name for name in dict.fromkeys(name for case in both for name in case["classes"]) if name in known]
    rows, metrics = [], compared_metrics({first: ours, other: theirs})
    if len(names) > 1:
        means = [
            {case["name"]: case.get("mean_ap", case["mean_dice"]) for case in cases} for cases in (both, counterparts)
        ]
        rows.append(ComparedScore(MEAN, metrics[0], paired_difference(*means)))
    for metric in metrics:
        for name in names:
            one, two = (class_scores(cases, name, metric) for cases in (both, counterparts))
            difference = paired_difference(one, two, higher_is_better=not lower_is_better(metric))
            rows.append(ComparedScore(name, metric, difference))
    return Comparison(first, other, tuple(rows), len(both), left_out)


def _is_same_reference(one: CaseScores, other: CaseScores) -> bool:
    for name in one["classes"].keys() & other["classes"].keys():
        for key in REFERENCE_SIZES:
            sizes = (float(case["classes"][name].get(key, 0.0)) for case in (one, other))  # type: ignore[arg-type] # a number
            if not math.isclose(*sizes, rel_tol=SAME_REFERENCE, abs_tol=1e-9):
                return False
    return True
