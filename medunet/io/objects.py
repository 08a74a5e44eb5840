"""Labels that number objects: exact numbers, and the class of each object from a class map or a CSV table."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medunet.errors import DataError

from .limits import system_errors

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


def classes_of_objects(
    objects: Objects, source: Path | npt.NDArray[Any], labels: Mapping[str, int], *, file: Path, case: str
) -> dict[int, int]:
    """Return the class index (1 .. C, in the order of `labels`) of each object.

    Args:
        objects: object numbers, any shape.
        source: a CSV table, or a class map of the same shape.
        labels: value by name of a class, background first. A table has names or values.
        file: of the table or class map, for errors.
        case: name of the case in the table.

    Raises:
        DataError: an object without class or with two classes, an id without object, or an unknown class.
    """
    numbers = np.unique(objects)
    numbers = numbers[numbers > 0]
    index = {value: place for place, value in enumerate(labels.values())}
    if isinstance(source, Path):
        tables = read_class_table(source)
        table = tables.get("") or tables.get(case, {})
        if unknown := sorted(set(table) - set(numbers.tolist())):
            raise DataError(f"the label of case {case} has no such object", file=file, received=_shown(unknown))
        values: dict[int, Any] = {number: labels.get(name, _number(name)) for number, name in table.items()}
    else:
        low, high = (f(source, objects, numbers).astype(np.int64) for f in (ndimage.minimum, ndimage.maximum))
        if (mixed := numbers[low != high]).size:
            raise DataError("an object must have one class", file=file, received=f"two in {_shown(mixed)}")
        values = {number: value for number, value in zip(numbers.tolist(), low.tolist(), strict=True) if value}
    if missing := sorted(set(numbers.tolist()) - values.keys()):
        raise DataError(f"objects of case {case} have no class", file=file, received=_shown(missing))
    if wrong := sorted(number for number, value in values.items() if index.get(value, 0) == 0):
        shown = table[wrong[0]] if isinstance(source, Path) else values[wrong[0]]
        expected = ", ".join(f"{name} ({value})" for name, value in list(labels.items())[1:])
        raise DataError(f"unknown class of object {wrong[0]}", file=file, received=shown, expected=expected)
    return {number: index[value] for number, value in values.items()}


def paint_classes(objects: Objects, classes: Mapping[int, int]) -> Objects:
    """Return a map of class indices from object numbers; 0 is the background."""
    lookup = np.zeros(int(objects.max(initial=0)) + 1, np.int32)
    for number, index in classes.items():
        lookup[number] = index
    return lookup[objects]


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _shown(numbers: Any) -> str:
    listed = [str(int(number)) for number in numbers[:SHOWN_IDS]]
    more = f" and {len(numbers) - SHOWN_IDS} more" if len(numbers) > SHOWN_IDS else ""
    return f"object{'s' * (len(numbers) > 1)} {', '.join(listed)}{more}"
