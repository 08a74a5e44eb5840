"""The distinct values of a label map."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError
from medunet.io import read_volume

MAX_LABELS = 32  # more distinct values, if no `dataset.json` names them, are taken for an image or for instances


def label_values(path: Path, *, limit: int | None = MAX_LABELS) -> tuple[int, ...]:
    """Return the distinct values of a label file, sorted; see `distinct_values`."""
    return distinct_values(read_volume(path).image.numpy(), path, limit=limit)


def distinct_values(voxels: npt.NDArray[np.float32], file: Path, *, limit: int | None = MAX_LABELS) -> tuple[int, ...]:
    """Return the distinct values of a label map, sorted.

    Args:
        voxels: ``(1, *spatial)``.
        file: the label's file, for errors.
        limit: number of values that are allowed; None: any number.

    Raises:
        DataError: fractional or negative values, several channels, or more than `limit` values.
    """
    if voxels.shape[0] > 1:
        remedy = "save it as a grey image"
        raise DataError("label has several channels", file=file, received=voxels.shape[0], remedy=remedy)
    if voxels.min() < 0:
        raise DataError("label has negative values", file=file, received=float(voxels.min()), remedy="relabel")
    if voxels.max() < 1 << 16 and (counts := _count_whole(voxels[0])) is not None:
        values = np.flatnonzero(counts)  # ten times faster than sorting
    else:
        values = np.unique(voxels)
        if not np.array_equal(values, np.round(values)):
            fraction = float(values[values != np.round(values)][0])
            raise DataError("label has fractional values", file=file, received=fraction, remedy="resample by nearest")
    if limit is not None:
        refuse_many(values, file, limit=limit)
    return tuple(int(value) for value in values)


def refuse_many(values: Sequence[int] | npt.NDArray[np.integer], file: Path, *, limit: int = MAX_LABELS) -> None:
    """Raise a DataError if a label map has more than `limit` values."""
    if len(values) > limit:
        raise DataError(
            "label has too many values for classes",
            file=file,
            received=len(values),
            expected=f"at most {limit}",
            remedy="check that this is a label map without lossy compression; or declare its classes in dataset.json",
        )


def refuse_swapped(image: npt.NDArray[np.float32], file: Path, label: Path, allowed: Collection[int] = ()) -> None:
    """Raise a DataError if an image ``(C, *spatial)``, whose label cannot be used, is a label map itself.

    `allowed` are the label values that the data set declares; empty if it declares none.
    """
    try:
        values = distinct_values(image, file)
    except DataError:
        return
    if len(values) > 1 and (not allowed or set(values) <= set(allowed)):
        raise DataError(
            "image and label look swapped",
            file=label,
            received=f"image {file.name} with values {list(values)} only",
            remedy="exchange the folders, or the entries in dataset.json",
        )


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


def index_values(label: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
    """Return the table of a label map's values, and the map ``(*spatial)`` of indices into this table.

    Args:
        label: whole numbers, none negative. Up to 65,535 each value is its own index.

    Example:
        >>> values, indices = index_values(np.array([0.0, 70000.0, 5.0], np.float32))
        >>> values.tolist(), indices.tolist()
        ([0, 5, 70000], [0, 2, 1])
    """
    largest = int(label.max(initial=0))
    if largest < 1 << 16:
        return np.arange(largest + 1), label.astype(np.uint16)
    values, indices = np.unique(label, return_inverse=True)
    return values.astype(np.int64), indices.reshape(label.shape).astype(np.uint16)
