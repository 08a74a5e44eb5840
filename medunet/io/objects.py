"""Labels that number objects: exact numbers, and the class of each object from a class map or a CSV table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medunet.errors import DataError

from .limits import system_errors
from .reader import read_volume

MAX_OBJECTS = (1 << 24) - 1  # images are read as float32, which represents whole numbers up to this one exactly
TABLE_SUFFIX = ".csv"
SHOWN_IDS = 5  # objects that an error names

Objects = npt.NDArray[np.int32]


def object_numbers(voxels: npt.NDArray[Any], file: Path) -> Objects:
    """Return a label map ``(1, *spatial)`` of object numbers as int32.

    Raises:
        DataError: several channels, negative or fractional values, or numbers above `MAX_OBJECTS`.
    """
    if voxels.shape[0] > 1:
        cause, remedy = "label has several channels", "save it as a grey image"
        raise DataError(cause, file=file, received=voxels.shape[0], expected=1, remedy=remedy)
    low, high = (voxels.min(), voxels.max()) if voxels.size else (0, 0)
    if low < 0:
        raise DataError("object numbers must not be negative", file=file, received=f"{low:g}")
    if high > MAX_OBJECTS:
        remedy = "number the objects from 1"
        raise DataError(
            f"object numbers must be at most {MAX_OBJECTS}", file=file, received=f"{high:.0f}", remedy=remedy
        )
    numbers = voxels.astype(np.int32)
    if voxels.dtype.kind == "f" and (fractional := voxels != numbers).any():
        cause, received = "object numbers must be whole", f"{voxels[fractional][0]:g}"
        raise DataError(cause, file=file, received=received, remedy="resample by nearest neighbour")
    return numbers


def read_class_table(path: Path) -> dict[str, dict[int, str]]:
    """Return the class of each object by case from a CSV file with columns `id` and `class`, and perhaps `case`.

    Without this column, the only case is ''.

    Raises:
        DataError: unreadable, missing columns, an invalid id, or an object with two rows.
    """
    classes: dict[str, dict[int, str]] = {}
    with system_errors(path), path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, skipinitialspace=True, restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            if not {"id", "class"} <= set(columns):
                received = ", ".join(columns) or "no header"
                raise DataError("columns are missing", file=path, received=received, expected="id and class")
            reader.fieldnames = columns
            for row in reader:
                case, text, name = (row.get(column, "").strip() for column in ("case", "id", "class"))
                if not text.isdecimal() or not name:
                    cause = f"line {reader.line_num}: id must be a whole number, and class must not be empty"
                    raise DataError(cause, file=path, received=f"{text!r}, {name!r}")
                if int(text) in classes.setdefault(case, {}):
                    received = f"{f'case {case}, ' if case else ''}object {text} again on line {reader.line_num}"
                    raise DataError("an object must have one row", file=path, received=received)
                classes[case][int(text)] = name
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"invalid CSV: {error}", file=path) from error
    return classes


def classes_of_objects(objects: Objects, file: Path, labels: Mapping[str, int], *, case: str) -> dict[int, int]:
    """Return the class index (1 .. C, in the order of `labels`) of each object.

    Args:
        objects: object numbers ``(1, *spatial)``.
        file: a class map on the same grid, or a CSV table with names or values of classes.
        labels: value by name of a class, background first.
        case: name of the case in the table.

    Raises:
        DataError: an object without class or with two classes, an id without object, or an unknown class.
    """
    numbers = np.unique(objects)
    numbers = numbers[numbers > 0]
    values: dict[int, int | str]
    if file.suffix == TABLE_SUFFIX:
        tables = read_class_table(file)
        table = tables.get("") or tables.get(case, {})
        if unknown := sorted(set(table) - set(numbers.tolist())):
            raise DataError(f"the label of case {case} has no such object", file=file, received=_shown(unknown))
        values = {number: labels.get(name, int(name) if name.isdecimal() else name) for number, name in table.items()}
    else:
        classes = read_volume(file, spatial_dims=2 if objects.ndim == 3 else None).image.numpy()
        if classes.shape != objects.shape:
            cause, expected = "class map and label have different shapes", objects.shape[1:]
            raise DataError(cause, file=file, received=classes.shape[1:], expected=expected)
        low, high = (f(classes, objects, numbers).astype(np.int64) for f in (ndimage.minimum, ndimage.maximum))
        if (mixed := numbers[low != high]).size:
            raise DataError("an object must have one class", file=file, received=f"two in {_shown(mixed.tolist())}")
        values = {number: value for number, value in zip(numbers.tolist(), low.tolist(), strict=True) if value}
    if missing := sorted(set(numbers.tolist()) - values.keys()):
        raise DataError(f"objects of case {case} have no class", file=file, received=_shown(missing))
    _, *known = labels.values()
    indices: dict[int | str, int] = {value: index for index, value in enumerate(known, start=1)}
    if wrong := [number for number, value in values.items() if value not in indices]:
        known_names = ", ".join(f"{name} ({value})" for name, value in labels.items() if value in indices)
        raise DataError(
            f"unknown class of object {wrong[0]}", file=file, received=values[wrong[0]], expected=known_names
        )
    return {number: indices[value] for number, value in values.items()}


def read_classes(objects: Objects, file: Path, labels: Mapping[str, int], *, case: str) -> Objects:
    """Return a map of class indices, 0 for the background; the arguments are those of `classes_of_objects`."""
    lookup = np.zeros(int(objects.max(initial=0)) + 1, np.int32)
    for number, index in classes_of_objects(objects, file, labels, case=case).items():
        lookup[number] = index
    return lookup[objects]


def _shown(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:SHOWN_IDS]))
    more = f" and {len(numbers) - SHOWN_IDS} more" if len(numbers) > SHOWN_IDS else ""
    return f"object{'s' * (len(numbers) > 1)} {listed}{more}"
