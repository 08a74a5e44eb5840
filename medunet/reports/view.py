"""Images as radiologists look at them: the patient's right on the left, anterior or superior on top."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Spacing: TypeAlias = tuple[float, float, float]

WINDOW_PERCENTILES = (0.5, 99.5)  # shown as black and white: metal or padding must not take the contrast
WINDOW_SAMPLES = 500_000  # voxels from which the percentiles are taken; more do not move them visibly


def as_seen(
    arrays: Sequence[Array], affine: npt.ArrayLike | None, spacing_mm: Sequence[float] | None = None
) -> tuple[list[Array], Spacing]:
    """Return views `(slices, rows, columns)`, and the distances between slices, rows and columns.

    Slices run from head to feet, rows to the back and columns to the left. A picture becomes one slice. Without an
    affine axes are only reversed. `spacing_mm` is along each axis of the arrays; the default is the affine's, else 1.
    """
    planar = arrays[0].ndim == 2
    if affine is None:
        column_mm, row_mm, *depth_mm = spacing_mm or (1.0,) * arrays[0].ndim
        spacing = (depth_mm[0] if depth_mm else 1.0, row_mm, column_mm)
        return [array.T[None] if planar else array.T for array in arrays], spacing
    matrix = np.asarray(affine, dtype=float)
    turn = nib.orientations.io_orientation(matrix)
    order = [2, 1, 0]
    if planar:  # the slice's own axis is the one that it is not in
        arrays = [array[:, :, None] for array in arrays]
        depth = int(turn[2, 0])
        order = [depth, *(axis for axis in order if axis != depth)]
    along_axes = nib.affines.voxel_sizes(matrix).tolist() if spacing_mm is None else (*spacing_mm, 1.0)[:3]
    sizes = dict(zip(turn[:, 0].astype(int).tolist(), along_axes, strict=True))
    # RAS indices grow to the right, front and head; a picture begins at the patient's right, front and head
    seen = [nib.orientations.apply_orientation(array, turn).transpose(order)[::-1, ::-1, ::-1] for array in arrays]
    z, y, x = (sizes[axis] for axis in order)
    return seen, (z, y, x)


def window(*arrays: Array) -> tuple[float, float]:
    """Return the intensities that are shown as black and as white."""
    samples = []
    for array in arrays:
        # every n-th voxel along each axis is a view; a flat index would copy a volume that is not in C order
        step = max(1, math.ceil((array.size * len(arrays) / WINDOW_SAMPLES) ** (1 / array.ndim)))
        samples.append(array[(slice(None, None, step),) * array.ndim].astype(np.float64).ravel())
    sample = np.concatenate(samples)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(sample, WINDOW_PERCENTILES)
    if low == high:
        low, high = sample.min(), sample.max()
    return float(low), float(high if high > low else low + 1)


def as_bytes(array: Array, limits: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Return intensities as 0 (black, and NaN) to 255 (white)."""
    low, high = limits
    scaled = (np.nan_to_num(array, nan=low) - low) / (high - low) * 255
    return np.round(np.clip(scaled, 0, 255)).astype(np.uint8)
