"""Names and values of the labels of data sets without a `dataset.json`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from medunet.datasets.check.instances import refuse_instances
from medunet.errors import DataError, MedunetError
from medunet.io import is_structure_file, label_names, read_volume

from .dataset import Case
from .values import MAX_LABELS, label_values, refuse_many, refuse_swapped

MAX_CLASSES = 255  # a predicted label map has 8-bit class indices, of which one marks cells without a class
BACKGROUND = "background"
SCAN_THREADS = 4  # decompression releases the interpreter's lock


def scan_labels(cases: Sequence[Case], problems: list[MedunetError] | None = None) -> dict[str, int]:
    """Return names and values from all label files: 0 is 'background', any other value v is 'label_v'.

    DICOM SEG, RTSTRUCT and `.seg.nrrd` name their structures: these names are used, with the files' numbers if all
    files agree on them, otherwise numbered in alphabetical order.

    Labels of instances, swapped images and labels, a single value in all files, and named beside unnamed labels are
    errors. `problems` collects errors about single files.
    """
    images = {case.label: case.images[0] for case in cases if case.label is not None}
    files = list(images)
    named = [path for path in files if is_structure_file(path)]
    if named and len(named) < len(files):
        raise DataError(
            "some labels name their structures and some do not",
            file=next(path for path in files if path not in set(named)),
            expected=f"a file like {named[0].name}",
            remedy="convert them to one format",
        )
    if named:
        return _scan_names(named, problems)
    stats = [(path, path.stat()) for path in files]
    results = _scan(tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))
    refuse_instances({path: result for path, result in results.items() if not isinstance(result, MedunetError)})
    values: set[int] = set()
    for path, result in results.items():
        try:
            if isinstance(result, MedunetError):
                raise result
            refuse_many(result, path)
            values.update(result)
        except MedunetError as error:
            if not values:
                _refuse_swapped(images[path], path)
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
    return {BACKGROUND if index == 0 else f"label_{value}": value for index, value in enumerate(sorted(values))}


@lru_cache(maxsize=8)  # a bundle's config opens its data set for training and again for validation
def _scan(stamps: tuple[tuple[Path, int, int], ...]) -> dict[Path, tuple[int, ...] | MedunetError]:
    """Return the values of each file, or why they cannot be read; the stamps make the cache notice changed files."""

    def values(path: Path) -> tuple[int, ...] | MedunetError:
        try:
            return label_values(path, limit=None)
        except MedunetError as error:
            return error

    paths = [path for path, _, _ in stamps]
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        return dict(zip(paths, pool.map(values, paths), strict=True))


def _refuse_swapped(image: Path, label: Path) -> None:
    try:
        voxels = read_volume(image).image.numpy()
    except MedunetError:  # reported by the check of the case
        return
    refuse_swapped(voxels, image, label)


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
    named = {spellings[key]: first[key] if agreed else number for number, key in enumerate(order, start=1)}
    return {BACKGROUND: 0, **named}
