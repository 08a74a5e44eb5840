"""Maps between grids that share voxels."""

from __future__ import annotations

import os
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medunet.errors import GeometryError
from medunet.geometry import Geometry

LATTICE_TOLERANCE_VOXELS = 0.2
"""Largest distance of a voxel from its partner on the reference. Positions of slices are decimal strings and vary by up
to `medunet.io.dicom.grid.GAP_TOLERANCE_MM`; a fifth of a voxel changes no label."""


class LatticeMap(NamedTuple):
    """Index of the reference for each index of another grid: ``axes @ index + offset``, all whole numbers."""

    axes: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]

    def __call__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Map ``(3, N)`` indices."""
        return np.asarray(self.axes @ indices + self.offset[:, None])


def lattice_map(source: Geometry, reference: Geometry, *, file: str | os.PathLike[str]) -> LatticeMap:
    """Return how to place a volume on a reference that shares its voxels, possibly mirrored or with permuted axes.

    Args:
        source: grid of the volume; it may be smaller than the reference and extend beyond it.
        reference: grid to place it on.
        file: named in the error.

    Raises:
        GeometryError: the centres of the voxels do not coincide.
    """
    if len(source.shape) != 3 or len(reference.shape) != 3:
        received = f"image of {len(reference.shape)} axes"
        raise GeometryError("a segmentation in a patient needs an image volume", file=file, received=received)
    exact = np.linalg.inv(reference.affine) @ source.affine
    axes, offset = np.rint(exact[:3, :3]).astype(np.int64), np.rint(exact[:3, 3]).astype(np.int64)
    corners = np.array(list(product(*[(0, n - 1) for n in source.shape]))).T
    distance = np.abs(exact[:3, :3] @ corners + exact[:3, 3:] - (axes @ corners + offset[:, None])).max()
    if not np.array_equal(np.abs(axes) @ np.abs(axes).T, np.eye(3)) or distance > LATTICE_TOLERANCE_VOXELS:
        raise GeometryError(
            "segmentation does not lie on the image's grid",
            file=file,
            received=source,
            expected=f"voxels of {reference}",
            remedy="resample it, or give the image that it was drawn on",
        )
    return LatticeMap(axes, offset)


def lay_on(
    indices: npt.NDArray[np.int64], mapping: LatticeMap, target: npt.NDArray[np.bool_], *, file: str | os.PathLike[str]
) -> None:
    """Set voxels of a mask on the reference.

    Args:
        indices: ``(3, N)`` in the source.
        mapping: from the source to the target.
        target: mask on the reference, changed in place.
        file: named in the error.

    Raises:
        GeometryError: a voxel is outside.
    """
    mapped = mapping(indices)
    outside = ((mapped < 0) | (mapped >= np.reshape(target.shape, (3, 1)))).any(axis=0)
    if outside.any():
        raise GeometryError(
            "segmentation reaches outside the image",
            file=file,
            received=f"{int(outside.sum())} of {outside.size} voxels outside",
            remedy="give the image that it was drawn on",
        )
    target[tuple(mapped)] = True
