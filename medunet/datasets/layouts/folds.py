"""Folds of cross-validation, which keep the scans of one patient together."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from medunet.datasets.check.finding import Finding
from medunet.errors import ConfigError, MedunetError

from .dataset import SECOND_CASE, Case, image_digest
from .dicom_folders import patient_of

FOLDS = 5  # folds of a cross-validation by default
GROUPS_EXAMPLE = '"groups": {"CASE_1": "PATIENT_1", "CASE_2": "PATIENT_1", "CASE_3": "PATIENT_2", ...}'

_SEPARATORS = re.compile(r"[-_. ]+")

# parts of a name with a number that identify no patient: T1, T2w, b1000, 3T, 2018
_NO_PATIENT = re.compile(r"[tb]\d{1,4}[a-z]*|\d+t|(19|20)\d\d", re.IGNORECASE)


def make_folds(cases: Sequence[Case], folds: int) -> list[tuple[Case, ...]]:
    """Distribute cases over folds of about equal size, each sorted by name, without splitting a group.

    Cases without a group are distributed one by one in the order of their names. Groups are assigned by size, the
    largest first, each to the smallest fold so far.

    Examples:
        >>> cases = [Case(name, (), group=name[0]) for name in ["a1", "a2", "a3", "b1", "b2", "c1"]]
        >>> [[case.name for case in fold] for fold in make_folds(cases, 2)]
        [['a1', 'a2', 'a3'], ['b1', 'b2', 'c1']]
    """
    if folds < 2:
        raise ConfigError("cross-validation needs two folds", received=folds, expected=">= 2", remedy=SECOND_CASE)
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.name):
        groups[case.group or case.name].append(case)
    if len(groups) < folds:
        what = "cases" if len(groups) == len(cases) else "groups of cases"
        raise ConfigError(f"fewer {what} than folds", received=len(groups), expected=f">= {folds}")
    parts: list[list[Case]] = [[] for _ in range(folds)]
    for group in sorted(groups.values(), key=len, reverse=True):  # equal sizes keep the order of the names
        min(parts, key=len).extend(group)
    return [tuple(sorted(part, key=lambda case: case.name)) for part in parts]


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


def split_patients(cases: Sequence[Case], *, folds: int = FOLDS) -> list[Finding]:
    """Return a warning for each kind of evidence that the folds separate images of one patient.

    Evidence is a common stem of names (``p01_a`` and ``p01_b``, ``sub-01_ses-1``), DICOM's PatientID, and equal images.
    If the data set declares groups, only equal images count.

    Args:
        cases: all labelled cases.
        folds: number of folds that training uses.
    """
    folds = min(folds, len({case.group or case.name for case in cases}))
    if folds < 2:
        return []
    fold_of = {case.name: index for index, part in enumerate(make_folds(cases, folds)) for case in part}
    evidence = {"images are equal": _by_case(cases, lambda case: image_digest(case.images))}
    if not any(case.group for case in cases):
        evidence |= {"DICOM's PatientID is the same": _patients(cases), "names have a common stem": _stems(cases)}
    findings = []
    for why, owners in evidence.items():
        groups: dict[str, list[str]] = defaultdict(list)
        for name, owner in owners.items():
            groups[owner].append(name)
        split = [names for names in groups.values() if len({fold_of[name] for name in names}) > 1]
        if split:
            count = f"{len(split)} patients" if len(split) > 1 else "a patient"
            example = ", ".join(sorted(split[0])[:3]) + (", ..." if len(split[0]) > 3 else "")
            remedy = f"if these are one patient's images, declare groups in dataset.json: {GROUPS_EXAMPLE}"
            findings.append(Finding("warning", "", f"folds seem to split {count}: {why} ({example})", remedy))
    return findings


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
