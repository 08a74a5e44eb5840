"""Label files: their distinct values, the names of their structures, and whether they number objects."""

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage import measure

from medunet.errors import DataError, MedunetError
from medunet.io import is_structure_file, label_names, read_volume

from .dataset import Case, collect

logger = logging.getLogger(__name__)

MAX_CLASSES = 255  # a predicted label map has 8-bit class indices, of which one marks cells without a class
MAX_LABELS = 32  # more distinct values, if no `dataset.json` names them, are taken for an image or for instances
BACKGROUND = "background"
SCAN_THREADS = 4  # decompression releases the interpreter's lock

MIN_OBJECTS = 4  # fewer values in every image may be classes of which the later ones are rarer: organ, tumour, cyst
MIN_COUNTS = 3  # different numbers of values that at least three images must have: classes are mostly all there
CONSECUTIVE_SHARE = 0.95  # of the images must have exactly the values 1 to n: missing classes leave gaps elsewhere
INCOMPLETE_SHARE = 0.25  # of the images must lack the largest value
SINGLE_SHARE = 0.95  # of the values must be one connected piece in their image
SAMPLE = 10  # images whose pieces are counted


def label_values(path: Path, *, limit: int | None = MAX_LABELS) -> tuple[int, ...]:
    """Return the distinct values of a label file, sorted.

    Args:
        path: the file.
        limit: number of values that are allowed; None: any number.

    Raises:
        DataError: fractional or negative values, several channels, or more than `limit` values.
    """
    return distinct_values(read_volume(path).image.numpy(), path, limit=limit)


def distinct_values(voxels: npt.NDArray[np.float32], file: Path, *, limit: int | None = MAX_LABELS) -> tuple[int, ...]:
    """Return the distinct values of a label map ``(1, *spatial)``, as `label_values`."""
    return tuple(_count_values(voxels, file, limit=limit))


def _count_values(voxels: npt.NDArray[np.float32], file: Path, *, limit: int | None) -> dict[int, int]:
    """Return the number of voxels by value; raises as `label_values`."""
    if voxels.shape[0] > 1:
        remedy = "save it as a grey image"
        raise DataError("label has several channels", file=file, received=voxels.shape[0], remedy=remedy)
    if voxels.min() < 0:
        raise DataError("label has negative values", file=file, received=float(voxels.min()), remedy="relabel")
    if voxels.max() < 1 << 16 and (counts := _count_whole(voxels[0])) is not None:
        values = np.flatnonzero(counts)  # ten times faster than sorting
        counts = counts[values]
    else:
        values, counts = np.unique(voxels, return_counts=True)
        if not np.array_equal(values, np.round(values)):
            fraction = float(values[values != np.round(values)][0])
            raise DataError("label has fractional values", file=file, received=fraction, remedy="resample by nearest")
    if limit is not None:
        _refuse_many(len(values), file, limit=limit)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _count_whole(voxels: npt.NDArray[np.float32]) -> npt.NDArray[np.int64] | None:
    """Return how often each value occurs, plane by plane to save memory; None if there are fractional values."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for plane in voxels:
        whole = plane.astype(np.uint16)
        if not np.array_equal(whole, plane):
            return None
        in_plane = np.bincount(whole.ravel())
        counts[: len(in_plane)] += in_plane
    return counts


def _refuse_many(count: int, file: Path, *, limit: int = MAX_LABELS) -> None:
    if count > limit:
        remedy = "check that this is a label map without lossy compression; name its classes in dataset.json; or pass "
        remedy += "--instances if the values number objects"
        expected = f"at most {limit}"
        raise DataError(
            "label has too many values for classes", file=file, received=count, expected=expected, remedy=remedy
        )


def refuse_swapped(image: npt.NDArray[np.float32], file: Path, label: Path, allowed: Collection[int] = ()) -> None:
    """Raise a DataError if an image ``(C, *spatial)``, whose label cannot be used, is a label map itself.

    `allowed` are the declared label values; empty if none are declared.
    """
    try:
        values = distinct_values(image, file)
    except DataError:
        return
    if len(values) > 1 and (not allowed or set(values) <= set(allowed)):
        received = f"image {file.name} with values {list(values)} only"
        remedy = "exchange the folders, or the entries in dataset.json"
        raise DataError("image and label look swapped", file=label, received=received, remedy=remedy)


def index_values(label: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.integer[Any]]]:
    """Return the table of a label map's values, and the map ``(*spatial)`` of indices into this table."""
    largest = int(label.max(initial=0))
    if largest < 1 << 16:
        return np.arange(largest + 1), label.astype(np.uint16)
    values, indices = np.unique(label, return_inverse=True)
    return values.astype(np.int64), indices.reshape(label.shape).astype(
        np.uint16 if len(values) < 1 << 16 else np.int32
    )


def scan_labels(cases: Sequence[Case], problems: list[MedunetError] | None = None) -> dict[str, int]:
    """Return names and values from all label files: 0 is 'background', any other value v is 'label_v'.

    DICOM SEG, RTSTRUCT and `.seg.nrrd` give the names of their structures. `problems` collects errors about single
    files instead of raising them.
    """
    images = {case.label: case.images[0] for case in cases if case.label is not None}
    files = list(images)
    named = [path for path in files if is_structure_file(path)]
    if named and len(named) < len(files):
        other = next(path for path in files if path not in named)
        expected = f"a file like {named[0].name}"
        raise DataError("some labels name their structures and some do not", file=other, expected=expected)
    if named:
        return _scan_names(named, problems)
    results = _scan(files)
    refuse_instances({path: result for path, result in results.items() if not isinstance(result, MedunetError)})
    values: set[int] = set()
    for path, result in results.items():
        try:
            if isinstance(result, MedunetError):
                raise result
            _refuse_many(len(result), path)
            values.update(result)
        except MedunetError as error:
            if not values:
                _refuse_swapped_files(images[path], path)
            if problems is None:
                raise
            problems.append(error)
    _refuse_many(len(values), files[0].parent)
    if len(values) < 2:
        raise DataError("labels must have more than one value", file=files[0].parent, received=sorted(values))
    return {BACKGROUND if index == 0 else f"label_{value}": value for index, value in enumerate(sorted(values))}


def label_counts(cases: Sequence[Case]) -> list[dict[int, int]]:
    """Return the number of voxels by label value for each case; empty for structure files and unreadable labels."""
    results = _scan([case.label for case in cases if case.label is not None and not is_structure_file(case.label)])
    counts = {path: result for path, result in results.items() if not isinstance(result, MedunetError)}
    return [counts.get(case.label or Path(), {}) for case in cases]


def _scan(paths: Sequence[Path]) -> dict[Path, dict[int, int] | MedunetError]:
    """Return the number of voxels by value in each file, or the file's error."""
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        return dict(zip(paths, pool.map(_scan_file, paths), strict=True))


def _scan_file(path: Path) -> dict[int, int] | MedunetError:
    try:
        stat = path.stat()
    except OSError as error:
        return DataError(f"cannot be opened: {error.strerror or error}", file=path)
    return _scan_version(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1 << 16)  # a bundle's config opens its data set for training and again for validation
def _scan_version(path: Path, _mtime: int, _size: int) -> dict[int, int] | MedunetError:
    try:
        return _count_values(read_volume(path).image.numpy(), path, limit=None)
    except MedunetError as error:
        return error


def _refuse_swapped_files(image: Path, label: Path) -> None:
    try:
        voxels = read_volume(image).image.numpy()
    except MedunetError:  # reported by the check of the case
        return
    refuse_swapped(voxels, image, label)


def _scan_names(files: Sequence[Path], problems: list[MedunetError] | None) -> dict[str, int]:
    """Return the names with the numbers on which all files agree, else numbered in alphabetical order."""
    spellings: dict[str, str] = {}
    numbers: dict[str, set[int]] = {}
    for path in files:
        names: dict[str, int] = {}
        with collect(problems):
            names = label_names(path) or {}
        for name, number in names.items():
            key = name.strip().casefold()
            if number != 0 and key != BACKGROUND:
                spellings.setdefault(key, name.strip())
                numbers.setdefault(key, set()).add(number)
    if not 0 < len(numbers) <= MAX_LABELS:
        cause = f"labels must name 1 to {MAX_LABELS} structures in all files together"
        remedy = 'choose some in dataset.json: {"labels": {"background": 0, "NAME": 1}}'
        raise DataError(cause, file=files[0].parent, received=len(numbers), remedy=remedy)
    first = {key: min(values) for key, values in numbers.items()}
    agreed = all(len(values) == 1 for values in numbers.values()) and len(set(first.values())) == len(first)
    order = sorted(first, key=lambda key: first[key]) if agreed else sorted(first)
    named = {spellings[key]: first[key] if agreed else number for number, key in enumerate(order, start=1)}
    return {BACKGROUND: 0, **named}


def refuse_instances(values: Mapping[Path, Collection[int]]) -> None:
    """Raise an error if label maps number the objects in each image.

    Such maps have the values 1 to n, n differs between images, and each value is one connected piece. Class labels may
    share one of these properties, but not all.

    Args:
        values: the distinct values of each label map.

    Raises:
        DataError: these look like instance labels. Up to three values, and numbers that do not start at 1, only cause a
            logged warning.
    """
    objects = {path: sorted(set(distinct) - {0}) for path, distinct in values.items()}
    counts = {path: len(distinct) for path, distinct in objects.items() if distinct}
    most = max(counts.values(), default=0)
    consecutive = sum(objects[path] == list(range(1, count + 1)) for path, count in counts.items())
    numbered = (
        len(set(counts.values())) >= (max(2, min(MIN_COUNTS, len(counts), most)) if most <= MAX_LABELS else 2)
        and consecutive >= CONSECUTIVE_SHARE * len(counts)
        and sum(count < most for count in counts.values()) >= INCOMPLETE_SHARE * len(counts)
    )
    may_be_classes = not numbered and len(set().union(*objects.values())) <= MAX_LABELS
    if may_be_classes and (most < MIN_OBJECTS or len(set(counts.values())) == 1):
        return
    ordered = sorted(counts, key=lambda path: (-counts[path], path))
    pieces, folder = pieces_of(ordered), ordered[0].parent
    single = sum(count == 1 for count in pieces)
    if single < SINGLE_SHARE * len(pieces):
        return
    if most < MIN_OBJECTS or may_be_classes:
        values_per_image = f"values 1 to {most}" if numbered else f"up to {most} values per image"
        text = "%s: %s are taken for classes; if they number objects, pass --instances"
        logger.warning(text, folder, values_per_image)
        return
    evidence = f"{min(counts.values())} to {most} values per image{', numbered from 1' if numbered else ''}"
    raise DataError(
        "these look like instance labels, one number per object, not like classes",
        file=folder,
        received=f"{evidence}; {single} of {len(pieces)} in one piece",
        expected="one value per class",
        remedy='pass --instances, or set "instances": true in dataset.json; or name the classes there: "labels": {...}',
    )


def pieces_of(files: Sequence[Path]) -> list[int]:
    """Return the number of connected pieces of each value but 0 in a sample of label maps."""
    pieces: list[int] = []
    for path in files[:: -(-len(files) // SAMPLE)]:
        table, indices = index_values(read_volume(path).image.numpy()[0])
        counts = count_pieces(np.where(table[indices] == 0, 0, indices.astype(np.int64) + 1))
        pieces += counts[counts > 0].tolist()
    return pieces


def count_pieces(numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return the number of connected pieces of each number of a map ``(*spatial)``, by number; 0 has none.

    Examples:
        >>> count_pieces(
        ...     np.array([[1, 0, 2], [0, 1, 0], [2, 0, 2]])
        ... ).tolist()  # voxels that share a corner are connected
        [0, 1, 3]
    """
    components = measure.label(numbers, background=0, connectivity=numbers.ndim)
    owners = np.zeros(int(components.max(initial=0)) + 1, np.int64)
    owners[components.ravel()] = numbers.ravel()
    return np.bincount(owners[1:], minlength=int(numbers.max(initial=0)) + 1)
