"""Which values the label files hold, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError, MedunetError
from medunet.io import is_structure_file, label_names, read_volume

from .regions import Region, has_regions, parse_regions

MAX_LABELS = 32
"""More distinct values than this, where no `dataset.json` names them, are taken for an image or for instances."""

MAX_CLASSES = 255
"""A predicted label map is made of 8-bit class indices, of which one marks cells without a class of their own."""

BACKGROUND = "background"
"""Name of what no structure covers."""

SCAN_THREADS = 4
"""Readers at once: decompression releases the interpreter's lock."""


def label_values(path: Path, *, limit: int = MAX_LABELS) -> tuple[int, ...]:
    """The distinct values of a label file, sorted; arguments and errors as of the reader and `distinct_values`."""
    return distinct_values(read_volume(path).image.numpy(), path, limit=limit)


def distinct_values(voxels: npt.NDArray[np.float32], file: Path, *, limit: int = MAX_LABELS) -> tuple[int, ...]:
    """The distinct values of a label map, sorted.

    Args:
        voxels: ``(1, *spatial)``.
        file: for errors.
        limit: number of values; as many as `dataset.json` names, where it names more than `MAX_LABELS`.

    Raises:
        DataError: fractional or negative values, several channels, or more than `limit` values.
    """
    if voxels.shape[0] > 1:
        raise DataError(
            "label has several channels",
            file=file,
            received=voxels.shape[0],
            remedy="save it as a grey image",
        )
    if voxels.min() < 0:
        raise DataError("label has negative values", file=file, received=float(voxels.min()), remedy="relabel")
    if voxels.max() < 1 << 16 and (counts := _count_whole(voxels[0])) is not None:
        values = np.flatnonzero(counts)  # ten times faster than sorting
    else:
        values = np.unique(voxels)
        if not np.array_equal(values, np.round(values)):
            fraction = float(values[values != np.round(values)][0])
            raise DataError("label has fractional values", file=file, received=fraction, remedy="resample by nearest")
    if len(values) > limit:
        raise DataError(
            "label has too many values for classes",
            file=file,
            received=len(values),
            expected=f"at most {limit}",
            remedy="check that this is a label map, no instances, no lossy JPEG; name so many classes in dataset.json",
        )
    return tuple(int(value) for value in values)


def _count_whole(voxels: npt.NDArray[np.float32]) -> npt.NDArray[np.int64] | None:
    """How often each value occurs, plane by plane so as to save memory; None where one is no whole number."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for plane in voxels:
        whole = plane.astype(np.uint16)
        if not np.array_equal(whole, plane):
            return None
        found = np.bincount(whole.ravel())
        counts[: len(found)] += found
    return counts


def index_values(
    label: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
    """A label map as places in a table of values, small enough to count by.

    Args:
        label: whole numbers, none negative.

    Returns:
        The table, and the map `(*spatial)` of places in it. Up to 65,535 each value is its own place.

    Example:
        >>> values, places = index_values(np.array([0.0, 70000.0, 5.0], np.float32))
        >>> values.tolist(), places.tolist()
        ([0, 5, 70000], [0, 2, 1])
    """
    largest = int(label.max(initial=0))
    if largest < 1 << 16:
        return np.arange(largest + 1), label.astype(np.uint16)
    values, places = np.unique(label, return_inverse=True)
    return values.astype(np.int64), places.reshape(label.shape).astype(np.uint16)


def scan_labels(files: Sequence[Path], problems: list[MedunetError] | None = None) -> dict[str, int]:
    """Names and values from all label files: 0 is 'background', any other value v is 'label_v'.

    DICOM SEG, RTSTRUCT and `.seg.nrrd` name what they hold: their names are taken, and the files' numbers where all
    agree on them; else the names are numbered in alphabetical order.

    Args:
        files: all labels.
        problems: collects what is wrong with single files instead of raising it.

    Raises:
        DataError: as `label_values`; a single value in all files, so that nothing can be learnt; or named and unnamed
            labels in one data set.
    """
    named = [path for path in files if is_structure_file(path)]
    if named and len(named) < len(files):
        plain = next(path for path in files if path not in set(named))
        raise DataError(
            "some labels name their structures and some do not",
            file=plain,
            expected=f"a file like {named[0].name}",
            remedy="convert them to one format",
        )
    if named:
        return _scan_names(named, problems)
    stamps = []
    for path in files:
        stat = path.stat()
        stamps.append((path, stat.st_mtime_ns, stat.st_size))
    values, errors = _scan(tuple(stamps))
    if errors and problems is None:
        raise errors[0]
    if problems is not None:
        problems.extend(errors)
    if len(values) > MAX_LABELS:
        raise DataError(
            "labels have too many values for classes",
            file=files[0].parent,
            received=len(values),
            expected=f"at most {MAX_LABELS}",
            remedy="check that these are label maps, and name so many classes in dataset.json",
        )
    if len(values) < 2:
        raise DataError("labels hold one value only", file=files[0].parent, received=list(values))
    return {"background" if index == 0 else f"label_{value}": value for index, value in enumerate(values)}


@lru_cache(maxsize=8)  # a bundle's config opens its data set for training and again for validation
def _scan(stamps: tuple[tuple[Path, int, int], ...]) -> tuple[tuple[int, ...], tuple[MedunetError, ...]]:
    """All values, and the errors of files that have none."""

    def values(path: Path) -> tuple[int, ...] | MedunetError:
        try:
            return label_values(path)
        except MedunetError as error:
            return error

    found: set[int] = set()
    errors = []
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        for result in pool.map(values, (path for path, _, _ in stamps)):
            if isinstance(result, MedunetError):
                errors.append(result)
            else:
                found.update(result)
    return tuple(sorted(found)), tuple(errors)


def _scan_names(files: Sequence[Path], problems: list[MedunetError] | None) -> dict[str, int]:
    spellings: dict[str, str] = {}
    numbers: dict[str, set[int]] = {}
    for path in files:
        try:
            names = label_names(path) or {}
        except MedunetError as error:
            if problems is None:
                raise
            problems.append(error)
            continue
        for name, number in names.items():
            key = name.strip().casefold()
            if number != 0 and key != BACKGROUND:
                spellings.setdefault(key, name.strip())
                numbers.setdefault(key, set()).add(number)
    if not numbers or len(numbers) > MAX_LABELS:
        raise DataError(
            "labels name too many structures" if numbers else "labels name no structure",
            file=files[0].parent,
            received=len(numbers),
            expected=f"1 to {MAX_LABELS} names in all files together",
            remedy='choose some in dataset.json: {"labels": {"background": 0, "NAME": 1}}',
        )
    first = {key: min(values) for key, values in numbers.items()}
    agreed = all(len(values) == 1 for values in numbers.values()) and len(set(first.values())) == len(first)
    order = sorted(first, key=lambda key: first[key]) if agreed else sorted(first)
    return {
        BACKGROUND: 0,
        **{spellings[key]: first[key] if agreed else place for place, key in enumerate(order, start=1)},
    }


class ParsedLabels(NamedTuple):
    """What a `dataset.json` says of labels.

    Args:
        labels: name to value, by value, background first.
        ignore: value of voxels without annotation, if nnU-Net's ``"ignore"`` names one.
        regions: unions of values, if some are declared.
    """

    labels: dict[str, int]
    ignore: int | None = None
    regions: tuple[Region, ...] = ()


def parse_labels(labels: object, file: Path, *, order: object = None) -> ParsedLabels:
    """Labels of a `dataset.json`, MSD's ``{"0": "background"}`` or nnU-Net's ``{"background": 0}``.

    Args:
        labels: the entry `labels`.
        file: for errors.
        order: the entry `regions_class_order`, for regions such as ``{"whole": [1, 2], "core": 2}``.

    Raises:
        DataError: neither style, two names of one value, or regions without an order.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise DataError("labels are missing", file=file, expected='{"background": 0, "liver": 1, ...}')
    if has_regions(labels):
        return ParsedLabels(*parse_regions(labels, order, file))
    pairs: dict[str, int] = {}
    for key, listed in labels.items():
        value = listed[0] if isinstance(listed, list | tuple) and len(listed) == 1 else listed
        if isinstance(value, str) and str(key).isdigit() and not value.isdigit():
            name, number = value, int(key)  # MSD
        elif isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            name, number = str(key), int(value)  # nnU-Net
        else:
            raise DataError("label is not understood", file=file, received={key: value}, expected='{"liver": 1}')
        if name in pairs or number in pairs.values():
            raise DataError("two labels share a name or a value", file=file, received={name: number})
        pairs[name] = number
    ignore = pairs.pop("ignore", None)
    if len(pairs) < 2:
        raise DataError("one label only", file=file, received=pairs, expected="background and at least one more")
    return ParsedLabels(dict(sorted(pairs.items(), key=lambda pair: pair[1])), ignore)
