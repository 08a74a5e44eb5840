"""Data sets whose labels number objects: the classes of the objects, and where they are stored."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medunet.errors import DataError, MedunetError
from medunet.io import is_structure_file
from medunet.io.objects import TABLE_SUFFIX, read_class_table

from .dataset import Case
from .labels import MAX_LABELS, SAMPLE, label_values, pieces_of
from .manifest import ParsedLabels
from .pairing import label_files, stem

KEY = "instances"  # of `dataset.json`
OBJECT = "object"  # name of the class if there is one, and `dataset.json` does not name it
CLASS_TABLE = "classes.csv"  # beside the folders, with columns case, id, class
SEVERAL_SHARE = 0.5  # of the values must be in several pieces to be classes; few objects are
CLASS_FOLDER = "_class"  # added to the name of the folder of labels: class maps with the same file names


def are_instances(manifest: Mapping[str, Any], file: Path, *, instances: bool) -> bool:
    """Return whether the labels of a data set number objects: by an option, or by its `dataset.json`."""
    declared = manifest.get(KEY, False)
    if not isinstance(declared, bool):
        raise DataError(f'"{KEY}" must be true or false', file=file, received=declared)
    return instances or declared


def refuse_classes(cases: Sequence[Case]) -> None:
    """Raise an error if labels that are said to number objects are class labels: few values, each in several pieces.

    A sample of the files is read; a file that cannot be read is left to the check of its case.
    """
    files = [case.label for case in cases if case.label is not None]
    values: set[int] = set()
    readable: list[Path] = []
    for path in files[:: -(-len(files) // SAMPLE)]:
        with contextlib.suppress(MedunetError):
            values.update(label_values(path, limit=None))
            readable.append(path)
    n_values = len(values - {0})
    if not 0 < n_values <= MAX_LABELS:
        return
    pieces = pieces_of(readable)
    several = sum(count > 1 for count in pieces)
    if several >= SEVERAL_SHARE * len(pieces):
        raise DataError(
            "these look like class labels, not like instance labels",
            file=readable[0].parent,
            received=f"{n_values} value{'s' * (n_values > 1)}; {several} of {len(pieces)} in several pieces",
            expected="one number per object",
            remedy="omit --instances; or number the objects, such as with skimage.measure.label",
        )


def with_classes(cases: Sequence[Case], root: Path) -> tuple[Case, ...]:
    """Return the cases with the file that has the classes of their objects, if there are such files.

    It is `labels_class/CASE.*`, a class map; `labels/CASE.csv` with columns id and class; or `classes.csv` in the root.

    Raises:
        DataError: a label that has structures instead of voxels, or only some cases have a class map or table.
    """
    maps: dict[Path, dict[str, Path]] = {}
    found: list[Case] = []
    for case in cases:
        if case.label is None:
            found.append(case)
            continue
        if is_structure_file(case.label):
            expected = "a label map with one number per object"
            raise DataError("instance labels cannot be segments or contours", file=case.label, expected=expected)
        folder = case.label.parent.with_name(case.label.parent.name + CLASS_FOLDER)
        if folder not in maps:
            maps[folder] = {stem(path): path for path in label_files(folder)} if folder.is_dir() else {}
        table = case.label.with_name(f"{stem(case.label)}{TABLE_SUFFIX}")
        common = root / CLASS_TABLE
        candidates = [maps[folder].get(stem(case.label)), *(path for path in (table, common) if path.is_file())]
        found.append(replace(case, classes=next((path for path in candidates if path is not None), None)))
    labelled = [case for case in found if case.label is not None]
    without = [case for case in labelled if case.classes is None]
    if 0 < len(without) < len(labelled):
        cause, received = "objects of some cases have no classes", f"{len(without)} of {len(labelled)} cases"
        raise DataError(cause, file=without[0].label, received=received, expected="a class map or table for each case")
    return tuple(found)


def class_labels(cases: Sequence[Case], parsed: ParsedLabels, file: Path) -> dict[str, int]:
    """Return the value of each class of objects by name, background first.

    The names are those of `dataset.json`, or of the class maps and tables; a single class is 1.

    Raises:
        DataError: regions or ignored voxels, or several classes without files that say which object has which.
    """
    if parsed.regions or parsed.ignore is not None:
        raise DataError("instance labels cannot have regions or ignored voxels", file=file)
    background, *names = parsed.labels or {"background": 0}
    files = {case.classes for case in cases if case.classes is not None}
    if len(names) > 1 and not files:
        expected = f"class maps in labels{CLASS_FOLDER}/, or {CLASS_TABLE} with columns case, id and class"
        raise DataError("objects of several classes need their classes", file=file, received=names, expected=expected)
    if len(names) > 1:
        return dict(parsed.labels)
    if names or not files:
        return {background: 0, (names or [OBJECT])[0]: 1}
    found: set[str | int] = set()
    for path in files:
        if path.suffix == TABLE_SUFFIX:
            found |= {name for table in read_class_table(path).values() for name in table.values()}
        else:
            found |= set(label_values(path)) - {0}
    texts = {str(name) for name in found}
    if all(text.isdecimal() for text in texts):
        return {background: 0, **{f"class_{value}": value for value in sorted(map(int, texts))}}
    return {background: 0, **{name: value for value, name in enumerate(sorted(texts), start=1)}}
