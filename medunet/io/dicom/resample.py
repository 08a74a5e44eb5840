"""Slices at uneven distances or behind a tilted gantry, interpolated to a regular grid when that is asked for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .grid import Grid


def resample(volume: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    """The volume ``(columns, rows, slices)`` on the planes and with the shifts of its grid; linear interpolation.

    What the shifts uncover is filled with the smallest value of the volume.
    """
    if grid.interpolate:
        volume = _even(volume, grid.offsets, grid.planes)
    if grid.shifts is not None:
        volume = _upright(volume, grid)
    return volume


def _even(
    volume: npt.NDArray[np.float32], offsets: npt.NDArray[np.float64], planes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    result = np.empty((*volume.shape[:2], len(planes)), dtype=np.float32)
    below = np.clip(np.searchsorted(offsets, planes, side="right") - 1, 0, len(offsets) - 2)
    weights = (planes - offsets[below]) / (offsets[below + 1] - offsets[below])
    for k, (index, weight) in enumerate(zip(below, weights, strict=True)):
        result[..., k] = (1 - weight) * volume[..., index] + weight * volume[..., index + 1]
    return result


def _upright(volume: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    shape = grid.geometry.shape
    result = np.empty(shape, dtype=np.float32)
    lowest = float(volume.min())
    for k in range(shape[2]):
        # output index i lies at column i - margin of the first slice, and this slice begins `shift` columns further
        offset = -np.array(grid.margins, dtype=np.float64) - grid.shifts[k]  # type: ignore[index]
        ndimage.affine_transform(
            volume[..., k],
            np.ones(2),
            offset=offset,
            output_shape=shape[:2],
            output=result[..., k],
            order=1,
            mode="constant",
            cval=lowest,
        )
    return result
