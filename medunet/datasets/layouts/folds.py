"""Folds of cross-validation, which keep the scans of one patient together and are balanced in size and label."""

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from medunet.datasets.check.finding import Finding
from medunet.errors import ConfigError, MedunetError

from .dataset import SECOND_CASE, Case, image_digest
from .dicom_folders import patient_of
from .labels import MAX_CLASSES, label_counts

FOLDS = 5  # folds of a cross-validation by default
GROUPS_EXAMPLE = '"groups": {"CASE_1": "PATIENT_1", "CASE_2": "PATIENT_1", "CASE_3": "PATIENT_2", ...}'
MAX_SWAPS = 200  # exchanges of two groups between folds; a second for 1,000 cases
UNITS = 100_000  # of a share; whole numbers give the same folds on every machine

_SEPARATORS = re.compile(r"[-_. ]+")

# parts of a name with a number that identify no patient: T1, T2w, b1000, 3T, 2018
_NO_PATIENT = re.compile(r"[tb]\d{1,4}[a-z]*|\d+t|(19|20)\d\d", re.IGNORECASE)


def make_folds(cases: Sequence[Case], folds: int) -> list[tuple[Case, ...]]:
    """Distribute cases over folds of about equal size and labels, each sorted by name, without splitting a group.

    Groups are assigned one by one, large ones and those with unusual labels first. Each goes to the smallest fold so
    far; among equally small folds, to the one whose labels it balances best. The folds follow from the content of the
    files; names only decide between equal images.

    Args:
        cases: all labelled cases; the label files are read.
        folds: number of folds.

    Raises:
        ConfigError: fewer than two folds, or fewer cases or groups than folds.

    Examples:
        >>> cases = [Case(name, (), group=name[0]) for name in ["a1", "a2", "a3", "b1", "b2", "c1"]]
        >>> [[case.name for case in fold] for fold in make_folds(cases, 2)]
        [['a1', 'a2', 'a3'], ['b1', 'b2', 'c1']]
    """
    if folds < 2:
        raise ConfigError("cross-validation needs two folds", received=folds, expected=">= 2", remedy=SECOND_CASE)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        groups[case.group or case.name].append(index)
    if len(groups) < folds:
        what = "cases" if len(groups) == len(cases) else "groups of cases"
        raise ConfigError(f"fewer {what} than folds", received=len(groups), expected=f">= {folds}")
    rows = _label_rows(label_counts(cases))
    digests = _by_case(cases, lambda case: image_digest(case.images))

    def rank(group: list[int]) -> tuple[int, int, list[tuple[str, str]]]:
        members = sorted((digests.get(cases[index].name, ""), cases[index].name) for index in group)
        return -len(group), -int(abs(rows[group].sum(axis=0)).max(initial=0)), members

    order = sorted(groups.values(), key=rank)
    parts = _distribute(np.array([rows[group].sum(axis=0) for group in order]), np.array(list(map(len, order))), folds)
    chosen = [[cases[index] for number in part for index in order[number]] for part in parts]
    return [tuple(sorted(part, key=lambda case: case.name)) for part in chosen]


def _distribute(rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], folds: int) -> list[list[int]]:
    """Return the groups of each fold: sizes are balanced first, then the sums of the rows."""
    parts: list[list[int]] = [[] for _ in range(folds)]
    totals = np.zeros((folds, rows.shape[1]), dtype=np.int64)
    for number, row in enumerate(rows):
        overlaps = (totals @ row).tolist()  # the least adds least to the sum of squares
        best = min(range(folds), key=lambda fold: (int(sizes[parts[fold]].sum()), overlaps[fold]))
        parts[best].append(number)
        totals[best] += row
    for _ in range(MAX_SWAPS):  # exchange two groups of one size while that balances the sums
        swaps = []
        for one, other in combinations(range(folds), 2):
            ours, theirs = rows[parts[one]], rows[parts[other]]
            excess = totals[one] - totals[other]
            change = (ours * (ours - excess)).sum(1)[:, None] + (theirs * (theirs + excess)).sum(1)[None]
            change -= 2 * ours @ theirs.T
            change[sizes[parts[one]][:, None] != sizes[parts[other]][None]] = 0
            place = np.unravel_index(change.argmin(), change.shape)
            swaps.append((int(change[place]), one, other, int(place[0]), int(place[1])))
        change, one, other, left, right = min(swaps)
        if change >= 0:
            break
        difference = rows[parts[other][right]] - rows[parts[one][left]]
        parts[one][left], parts[other][right] = parts[other][right], parts[one][left]
        totals[one] += difference
        totals[other] -= difference
    return parts


def _label_rows(counts: Sequence[dict[int, int]]) -> npt.NDArray[np.int64]:
    """Return a row per case: presence and share of each label value, centred and scaled to whole numbers."""
    values = sorted(set().union(*counts))
    if len(values) > MAX_CLASSES:  # numbered objects
        counts = [{0: case.get(0, 0), 1: sum(case.values()) - case.get(0, 0)} for case in counts]
        values = [0, 1]
    voxels = np.array([[case.get(value, 0) for value in values] for case in counts], dtype=np.int64)
    voxels = voxels.reshape(len(counts), len(values))
    shares = voxels * UNITS // np.maximum(voxels.sum(axis=1, keepdims=True), 1)
    table = np.hstack([shares, voxels > 0]).astype(np.int64)
    table = table * len(table) - table.sum(axis=0)
    return table * UNITS // np.maximum(abs(table).max(axis=0, initial=0), 1)


def split_fold(cases: Sequence[Case], *, fold: int, folds: int = FOLDS) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return the training and the validation cases of one fold, each sorted by name.

    Args:
        cases: all labelled cases.
        fold: index of the fold, from 0.
        folds: number of folds.

    Raises:
        ConfigError: unknown fold, fewer than two folds, or fewer cases or groups than folds.
    """
    if folds >= 2 and not 0 <= fold < folds:
        raise ConfigError("unknown fold", received=fold, expected=f"0 to {folds - 1}")
    parts = make_folds(cases, folds)
    others = (case for index, part in enumerate(parts) if index != fold for case in part)
    return tuple(sorted(others, key=lambda case: case.name)), parts[fold]


def likely_groups(cases: Sequence[Case], split: Sequence[Sequence[str]] = ()) -> list[Finding]:
    """Return a warning for each kind of evidence that cases of one patient are not kept together.

    Evidence is a common stem of names (``p01_a`` and ``p01_b``, ``sub-01_ses-1``), DICOM's PatientID, and equal images.
    If the data set declares groups, only equal images count.

    Args:
        cases: all labelled cases.
        split: names of the validation cases of each fold; cases in one fold, and those in none, are together.
            Default: those of a group are together.
    """
    fold_of = {name: str(fold) for fold, names in enumerate(split) for name in names}
    unit = {case.name: fold_of.get(case.name, "") if split else case.group or case.name for case in cases}
    evidence = {"images are equal": _by_case(cases, lambda case: image_digest(case.images))}
    if not any(case.group for case in cases):
        evidence |= {"DICOM's PatientID is the same": _patients(cases), "names have a common stem": _stems(cases)}
    return [finding for why, owners in evidence.items() for finding in divided_patients(why, owners, unit)]


def divided_patients(why: str, owners: Mapping[str, Any], unit: Mapping[str, str]) -> list[Finding]:
    """Return at most one warning, about cases with the same owner that are in different units (folds or groups)."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, owner in owners.items():
        groups[owner].append(name)
    apart = [names for names in groups.values() if len({unit[name] for name in names}) > 1]
    if not apart:
        return []
    count = f"{len(apart)} patients" if len(apart) > 1 else "a patient"
    example = ", ".join(sorted(apart[0])[:3]) + (", ..." if len(apart[0]) > 3 else "")
    remedy = f"if these are one patient's images, keep them together: --group-by REGEX, or {GROUPS_EXAMPLE}"
    return [Finding("warning", "", f"folds may split {count}: {why} ({example})", f"{remedy} in dataset.json")]


def _patients(cases: Sequence[Case]) -> dict[str, str]:
    """Return a hash of the PatientID by case name; empty if all are equal, as after anonymisation."""
    identifiers = _by_case(cases, lambda case: patient_of(case.images[0]))
    hashed = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in identifiers.items() if text}
    return hashed if len(set(hashed.values())) > 1 else {}


def _by_case(cases: Sequence[Case], value: Callable[[Case], str]) -> dict[str, str]:
    values = {}
    for case in cases:
        with contextlib.suppress(MedunetError, OSError):  # reported by the check of the case
            values[case.name] = value(case)
    return values


def _stems(cases: Sequence[Case]) -> dict[str, str]:
    """Return the beginning of each name that seems to identify a patient; empty if no beginning does.

    It is the shortest beginning that ends in a number (or follows BIDS' ``sub-``), differs between cases and is shared
    by several: `ACDC_p01` for `ACDC_p01_frame01`; none for `liver_001`.
    """
    words = {case.name: _SEPARATORS.split(case.name) for case in cases}
    for length in range(1, max(map(len, words.values()), default=1)):
        stems = {name: "_".join(parts[:length]) for name, parts in words.items() if _names_patient(parts, length)}
        if len(set(stems.values())) > 1 and len(set(stems.values())) < len(stems):
            return stems
    return {}


def _names_patient(parts: Sequence[str], length: int) -> bool:
    if len(parts) < length:
        return False
    last = parts[length - 1]
    is_bids = length > 1 and parts[length - 2].lower() == "sub"
    return is_bids or (re.search(r"\d", last) is not None and not _NO_PATIENT.fullmatch(last))
