"""Which values the label files hold, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from medunet.errors import DataError
from medunet.io import read_volume

MAX_LABELS = 32
"""More distinct values than this are taken for an image or for instances, not for classes."""

SCAN_THREADS = 4
"""Readers at once: decompression releases the interpreter's lock."""


def label_values(path: Path) -> tuple[int, ...]:
    """The distinct values of a label file, sorted.

    Raises:
        DataError: fractional or negative values, several channels, or more than `MAX_LABELS` values.
    """
    voxels = read_volume(path).image.numpy()
    if voxels.shape[0] > 1:
        raise DataError(
            "label has several channels",
            file=path,
            received=voxels.shape[0],
            remedy="save it as a grey image",
        )
    largest = float(voxels.max())
    if voxels.min() < 0:
        raise DataError("label has negative values", file=path, received=float(voxels.min()), remedy="relabel")
    if largest < 1 << 16 and np.array_equal(whole := voxels.astype(np.uint16), voxels):
        values = np.flatnonzero(np.bincount(whole.ravel()))  # ten times faster than sorting
    else:
        values = np.unique(voxels)
        if not np.array_equal(values, np.round(values)):
            fraction = float(values[values != np.round(values)][0])
            raise DataError("label has fractional values", file=path, received=fraction, remedy="resample by nearest")
    if len(values) > MAX_LABELS:
        raise DataError(
            "label has too many values for classes",
            file=path,
            received=len(values),
            expected=f"at most {MAX_LABELS}",
            remedy="check that this is a label map; turn instances or a lossy JPEG into classes",
        )
    return tuple(int(value) for value in values)


def scan_labels(files: Sequence[Path]) -> dict[str, int]:
    """Names and values from all label files: 0 is 'background', any other value v is 'label_v'.

    Raises:
        DataError: as `label_values`, or a single value in all files, so that nothing can be learnt.
    """
    stamps = []
    for path in files:
        stat = path.stat()
        stamps.append((path, stat.st_mtime_ns, stat.st_size))
    values = _scan(tuple(stamps))
    if len(values) < 2:
        raise DataError("labels hold one value only", file=files[0].parent, received=list(values))
    return {"background" if index == 0 else f"label_{value}": value for index, value in enumerate(values)}


@lru_cache(maxsize=8)  # a bundle's config opens its data set for training and again for validation
def _scan(stamps: tuple[tuple[Path, int, int], ...]) -> tuple[int, ...]:
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        found = set().union(*pool.map(label_values, (path for path, _, _ in stamps)))
    if len(found) > MAX_LABELS:
        raise DataError(
            "labels have too many values for classes",
            file=stamps[0][0].parent,
            received=len(found),
            expected=f"at most {MAX_LABELS}",
            remedy="check that these are label maps",
        )
    return tuple(sorted(found))


def parse_labels(labels: object, file: Path) -> tuple[dict[str, int], int | None]:
    """Labels of a `dataset.json`, MSD's ``{"0": "background"}`` or nnU-Net's ``{"background": 0}``.

    Returns:
        Name to value, by value, and the value to ignore, if nnU-Net's ``"ignore"`` names one.

    Raises:
        DataError: neither style, regions (lists of values), or two names of one value.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise DataError("labels are missing", file=file, expected='{"background": 0, "liver": 1, ...}')
    pairs: dict[str, int] = {}
    for key, value in labels.items():
        if isinstance(value, list | tuple):
            raise DataError("regions of several labels are not supported", file=file, received={key: value})
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
    return dict(sorted(pairs.items(), key=lambda pair: pair[1])), ignore
