"""Splits and groups that a user gives: nnU-Net's `splits_final.json`, a CSV file, or a pattern of names."""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medunet.datasets.check.finding import shown
from medunet.errors import ConfigError, DataError
from medunet.io import split_suffix
from medunet.io.names import split_channel

from .dataset import Case, SegmentationDataset
from .folds import FOLDS, make_folds

Split = Sequence[Sequence[str]]  # names of the validation cases of each fold; with one fold, the other cases train

SPLIT_EXAMPLE = '[{"train": [...], "val": [...]}, ...], or a CSV file with the columns case, group and/or fold'


def regroup(
    dataset: SegmentationDataset,
    split: Path | None = None,
    group_by: str | None = None,
    *,
    folds: int = FOLDS,
    others: Collection[str] = (),
) -> SegmentationDataset:
    """Return a data set with the groups and the split that a user gives; without any, the same data set.

    Args:
        dataset: from `open_dataset`.
        split: nnU-Net's `splits_final.json`, or a CSV file with the columns `case` and `group`, `fold` or both.
        group_by: regular expression; its first group in a case's name is the case's group.
        folds: number of folds if the file has none; at most the number of groups.
        others: names of further cases that the file may have, such as unusable ones.

    Raises:
        DataError: the file cannot be read, or does not fit the cases.
        ConfigError: the pattern does not fit the cases, or both are given.
    """
    others = {*others, *(case.name for case in dataset.test)}
    parts: Split = ()
    if split is not None and group_by is not None:
        raise ConfigError("a split file and a pattern of groups exclude each other", received=group_by)
    if split is not None:
        groups, parts = _read_split(split, [case.name for case in dataset.cases], others)
        if groups:
            dataset = replace(dataset, cases=tuple(replace(case, group=groups[case.name]) for case in dataset.cases))
    elif group_by is not None:
        dataset = replace(dataset, cases=group_cases(dataset.cases, group_by))
    else:
        return dataset
    if not parts:
        made = make_folds(dataset.cases, max(2, min(folds, dataset.n_groups)))
        parts = [[case.name for case in part] for part in made]
    parts = checked_split(parts, dataset.cases, others=others, file=split)
    return replace(dataset, split=tuple(map(tuple, parts)))


def group_cases(cases: Sequence[Case], pattern: str) -> tuple[Case, ...]:
    r"""Return the cases with the first group of a regular expression in their names as their group.

    Examples:
        >>> [case.group for case in group_cases([Case("p01_a", ()), Case("p02_a", ())], r"(p\d+)_")]
        ['p01', 'p02']
    """
    try:
        matches = {case.name: re.search(pattern, case.name) for case in cases}
        groups = {name: match[1] for name, match in matches.items() if match}
    except (re.error, IndexError) as error:
        cause, expected = "not a regular expression with a group", r"such as '^(patient\d+)_'"
        raise ConfigError(cause, received=pattern, expected=expected) from error
    if missing := [case.name for case in cases if not groups.get(case.name)]:
        raise ConfigError("the pattern must match every case", received=f"{pattern}: not {shown(missing)}")
    if len(set(groups.values())) < 2:
        only = next(iter(groups.values()), "")
        raise ConfigError("the pattern must give at least two groups", received=f"{pattern}: only {only}")
    return tuple(replace(case, group=groups[case.name]) for case in cases)


def checked_split(
    split: Any,
    cases: Sequence[Case],
    *,
    others: Collection[str] = (),
    file: Path | None = None,
    remedy: str | None = None,
    is_complete: bool = True,
) -> list[list[str]]:
    """Return a split without the names in `others`, or raise an error if it does not fit the cases.

    Args:
        split: names of the validation cases of each fold.
        cases: all labelled cases.
        others: names of further cases that the split may have.
        file: where the split comes from, for errors.
        remedy: advice of errors.
        is_complete: whether the split must have every case.

    Raises:
        DataError: a case is unknown, repeated or missing; a fold is empty; a group is in several folds.
    """

    def wrong(cause: str, received: object) -> DataError:
        return DataError(f"split: {cause}", file=file, received=received, remedy=remedy)

    is_list = isinstance(split, list | tuple) and all(isinstance(part, list | tuple) for part in split)
    if not is_list or not split or not all(isinstance(name, str) for part in split for name in part):
        raise wrong("must be a list of names per fold", str(split)[:80])
    group_of = {case.name: case.group for case in cases}
    fold_of = {name: fold for fold, part in enumerate(split) for name in part}
    needed = group_of.keys() if is_complete and len(split) > 1 else ()
    listed = [name for part in split for name in part]
    _require_cases(listed, needed, {*group_of, *others}, "in the folds", file=file, remedy=remedy)
    parts = [[name for name in part if name in group_of] for part in split]
    if empty := [fold for fold, part in enumerate(parts) if not part]:
        raise wrong("a fold has no cases", f"fold {empty[0]} of {len(parts)}")
    if len(parts) == 1 and group_of.keys() <= fold_of.keys():
        raise wrong("no case is left for training", "one fold with all cases")
    folds_of_group: dict[str, set[int]] = {}
    for name, group in group_of.items():
        if group is not None and (name in fold_of or len(parts) == 1):
            folds_of_group.setdefault(group, set()).add(fold_of.get(name, -1))
    if divided := sorted(group for group, folds in folds_of_group.items() if len(folds) > 1):
        raise wrong("groups are in several folds", shown(divided))
    return parts


def _require_cases(
    listed: Sequence[str],
    needed: Collection[str],
    known: Collection[str],
    where: str,
    *,
    file: Path | None,
    remedy: str | None = None,
) -> None:
    """Raise an error unless each listed name is known and listed once, and each needed one is listed."""
    problems = {
        "unknown cases": {*listed} - {*known},
        "repeated cases": {name for name, count in Counter(listed).items() if count > 1},
        "missing cases": {*needed} - {*listed},
    }
    for cause, cases in problems.items():
        if cases:
            raise DataError(f"split: {cause} {where}", file=file, received=shown(sorted(cases)), remedy=remedy)


def _read_split(file: Path, names: Sequence[str], others: Collection[str]) -> tuple[dict[str, str], list[list[str]]]:
    """Return the group of each case and the names of each fold; each is empty if the file does not have it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=file) from error
    known = {*names, *others}
    if file.suffix.lower() == ".csv":
        return _read_csv(text.splitlines(), file, names, known)
    try:
        return {}, _read_nnunet(json.loads(text), file, names, known)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError("not a split", file=file, expected=SPLIT_EXAMPLE) from error


def _read_nnunet(entries: Any, file: Path, names: Sequence[str], known: set[str]) -> list[list[str]]:
    folds = []
    for number, entry in enumerate(entries):
        train, val = ([_match(name, known) for name in entry[key]] for key in ("train", "val"))
        _require_cases(train + val, names, known, f"in fold {number}", file=file)
        folds.append(val)
    if not folds:
        raise DataError("split: no folds", file=file, expected=SPLIT_EXAMPLE)
    return folds


def _read_csv(
    lines: Sequence[str], file: Path, names: Sequence[str], known: set[str]
) -> tuple[dict[str, str], list[list[str]]]:
    header = lines[0] if lines else ""
    delimiter = next((mark for mark in ";\t" if mark in header), ",")
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True, restval="")
    columns = set(reader.fieldnames or ())
    if "case" not in columns or not columns & {"group", "fold"}:
        raise DataError("split: columns are missing", file=file, received=header[:80], expected="case,group,fold")
    rows = [(_match(row["case"].strip(), known), row) for row in reader]
    _require_cases([name for name, _ in rows], names, known, "in column case", file=file)
    values = {
        key: {name: row[key].strip() for name, row in rows if name in names} for key in columns & {"group", "fold"}
    }
    groups, fold_of = values.get("group", {}), values.get("fold", {})
    if empty := [name for name, group in groups.items() if not group]:
        raise DataError("split: no group is given", file=file, received=shown(empty))
    if groups and len(set(groups.values())) < 2:
        raise DataError("split: at least two groups are needed", file=file, received=groups[names[0]])
    numbers = [str(number) for number in range(len(set(fold_of.values())))]
    if set(fold_of.values()) != set(numbers):
        received = shown(sorted(set(fold_of.values())))
        raise DataError("split: folds must be numbered from 0 without gaps", file=file, received=received)
    return groups, [[name for name in names if fold_of[name] == number] for number in numbers]


def _match(name: object, known: Collection[str]) -> str:
    """Return the name of the case that a name stands for, which may have nnU-Net's channel and an ending."""
    text = str(name)
    without = split_suffix(text)[0]
    return next((form for form in (text, without, split_channel(without)[0]) if form in known), text)
