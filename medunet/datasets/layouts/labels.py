"""Which values the label files hold, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medunet.datasets.check.instances import refuse_instances
from medunet.errors import DataError, MedunetError
from medunet.io import is_structure_file, label_names, read_volume

from .dataset import Case
from .regions import Region, has_regions, parse_regions
from .values import MAX_LABELS, label_values, refuse_many, refuse_swapped

MAX_CLASSES = 255
"""A predicted label map is made of 8-bit class indices, of which one marks cells without a class of their own."""

BACKGROUND = "background"
"""Name of what no structure covers."""

SCAN_THREADS = 4
"""Readers at once: decompression releases the interpreter's lock."""


def scan_labels(cases: Sequence[Case], problems: list[MedunetError] | None = None) -> dict[str, int]:
    """Names and values from all label files: 0 is 'background', any other value v is 'label_v'.

    DICOM SEG, RTSTRUCT and `.seg.nrrd` name what they hold: their names are taken, and the files' numbers where all
    agree on them; else the names are numbered in alphabetical order.

    Args:
        cases: all labelled cases.
        problems: collects what is wrong with single files instead of raising it.

    Raises:
        DataError: as `label_values`; labels of instances; images and labels that are swapped; a single value in all
            files, so that nothing can be learnt; or named and unnamed labels in one data set.
    """
    images = {case.label: case.images[0] for case in cases if case.label is not None}
    files = list(images)
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
    found = _scan(tuple(stamps))
    refuse_instances({path: result for path, result in found.items() if not isinstance(result, MedunetError)})
    values: set[int] = set()
    for path, result in found.items():
        try:
            if isinstance(result, MedunetError):
                raise result
            refuse_many(result, path)
            values.update(result)
        except MedunetError as error:
            if not values and (image := _voxels(images[path])) is not None:
                refuse_swapped(image, images[path], path)
            if problems is None:
                raise
            problems.append(error)
    if len(values) > MAX_LABELS:
        raise DataError(
            "labels have too many values for classes",
            file=files[0].parent,
            received=len(values),
            expected=f"at most {MAX_LABELS}",
            remedy="check that these are label maps, and declare so many classes in dataset.json",
        )
    if len(values) < 2:
        raise DataError("labels hold one value only", file=files[0].parent, received=sorted(values))
    return {"background" if index == 0 else f"label_{value}": value for index, value in enumerate(sorted(values))}


@lru_cache(maxsize=8)  # a bundle's config opens its data set for training and again for validation
def _scan(stamps: tuple[tuple[Path, int, int], ...]) -> dict[Path, tuple[int, ...] | MedunetError]:
    """The values of each file, or why it has none."""

    def values(path: Path) -> tuple[int, ...] | MedunetError:
        try:
            return label_values(path, limit=None)
        except MedunetError as error:
            return error

    paths = [path for path, _, _ in stamps]
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        return dict(zip(paths, pool.map(values, paths), strict=True))


def _voxels(path: Path) -> npt.NDArray[np.float32] | None:
    try:
        return read_volume(path).image.numpy()
    except MedunetError:  # reported by the check of the case
        return None


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
