"""Where voxels lie in the patient: affine, spacing, orientation; the only place where RAS meets LPS.

NIfTI, nibabel and MONAI count millimetres to the Right, Anterior, Superior (RAS); DICOM, ITK and SimpleITK count them
to the Left, Posterior, Superior (LPS). The two differ in the sign of x and y::

        S                     S
        |  A                  |  P
        | /                   | /
        |/____ R              |/____ L
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from medunet.errors import GeometryError

Affine = npt.NDArray[np.float64]
"""A 4x4 matrix from voxel indices to RAS millimetres."""

GRID_TOLERANCE_VOXELS = 0.05
"""Two grids are one when no corner lies further apart than this part of the smallest spacing. Headers keep float32
and rounded decimals (errors near 0.001 voxel), and a twentieth of a voxel changes no label."""

MIN_SPACING_MM = 1e-7
"""Below this a spacing is a broken header: electron microscopy at 1 nm is 1e-6 mm."""

MAX_SPACING_MM = 1e4
"""Above this (10 m) a spacing is a broken header."""

SHEAR_TOLERANCE = 1e-4
"""Largest cosine between two axes that still counts as perpendicular: 0.006 degrees, ten times the rounding of DICOM's
direction cosines; the smallest gantry tilt that scanners report is 0.5 degrees (0.009)."""

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def flip_ras_lps(affine: npt.ArrayLike) -> Affine:
    """The same placement in the other convention: RAS to LPS, or LPS to RAS (the map is its own inverse).

    Args:
        affine: 4x4 matrix from indices to millimetres.

    Example:
        >>> flip_ras_lps(np.eye(4)).diagonal().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
    return _LPS_FROM_RAS @ np.asarray(affine, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in the patient, without the voxels.

    Args:
        affine: 4x4 matrix from voxel indices to RAS millimetres; kept as a read-only float64 copy. An image in the
            plane has one too, whose third column is not used.
        shape: number of voxels along each of the two or three axes.

    Raises:
        GeometryError: the matrix is not 4x4, not finite, singular, or has a spacing outside `MIN_SPACING_MM` to
            `MAX_SPACING_MM`; or the shape is not two or three positive numbers.

    Example:
        >>> geometry = Geometry(np.diag([-0.5, -0.5, 3.0, 1.0]), (512, 512, 100))
        >>> geometry.spacing_mm, geometry.axis_codes
        ((0.5, 0.5, 3.0), 'LPS')
    """

    affine: Affine
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if affine.shape != (4, 4):
            raise GeometryError("affine has the wrong size", received=affine.shape, expected="(4, 4)")
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise GeometryError("an image has two or three axes", received=shape, expected="positive sizes")
        if not np.isfinite(affine).all():
            raise GeometryError("affine has values that are not finite", received=affine.tolist())
        if not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise GeometryError("affine has a wrong last row", received=affine[3].tolist(), expected=[0, 0, 0, 1])
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
            expected = f"{MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm"
            raise GeometryError("impossible voxel spacing", received=spacing.tolist(), expected=expected)
        if abs(np.linalg.det(affine[:3, :3] / spacing)) < SHEAR_TOLERANCE:
            raise GeometryError("affine is singular: two axes point the same way", received=affine.tolist())
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def from_lps(
        cls, *, origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float], shape: Sequence[int]
    ) -> Geometry:
        """From what ITK keeps: origin and spacing in LPS mm, both of length 3, and nine direction cosines by rows."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(np.asarray(direction, dtype=np.float64), (3, 3)) * np.asarray(spacing)
        affine[:3, 3] = origin
        return cls(flip_ras_lps(affine), tuple(shape))

    def to_lps(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Origin, spacing and direction (by rows) in LPS mm, as `SimpleITK.Image` takes them."""
        lps = flip_ras_lps(self.affine)
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        return tuple(lps[:3, 3].tolist()), tuple(spacing.tolist()), tuple((lps[:3, :3] / spacing).ravel().tolist())

    def __str__(self) -> str:
        """Return shape, spacing and orientation, for messages."""
        spacing = tuple(round(length, 4) for length in self.spacing_mm)
        return f"shape {self.shape}, spacing {spacing} mm, axes {self.axis_codes}"

    @cached_property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of neighbouring voxels along each axis of the image."""
        return tuple(np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0).tolist())

    @cached_property
    def direction(self) -> Affine:
        """3x3 matrix whose columns are the unit vectors of the axes in RAS."""
        columns = self.affine[:3, :3]
        return np.asarray(columns / np.linalg.norm(columns, axis=0))

    @cached_property
    def axis_codes(self) -> str:
        """For each axis the nearest patient direction in which its index grows, such as 'RAS' or 'LPS'.

        Each direction is used once: the axis that is best aligned chooses first.
        """
        cosines = self.direction.copy()
        codes = [""] * 3
        for _ in range(3):
            patient, axis = np.unravel_index(np.argmax(np.abs(np.nan_to_num(cosines))), cosines.shape)
            codes[axis] = ("RL", "AP", "SI")[patient][int(cosines[patient, axis] < 0)]
            cosines[patient, :] = 0
            cosines[:, axis] = 0
        return "".join(codes[: len(self.shape)])

    @property
    def is_sheared(self) -> bool:
        """Whether two axes are not perpendicular, as after a gantry tilt."""
        cosines = self.direction.T @ self.direction
        return bool(np.abs(cosines - np.diag(np.diag(cosines))).max() > SHEAR_TOLERANCE)

    def corner_distance_mm(self, other: Geometry) -> float:
        """The largest distance between corners of the same index in the two grids (of equal shape)."""
        ends = [(0, n - 1) for n in self.shape] + [(0,)] * (3 - len(self.shape))
        corners = np.array([(*corner, 1) for corner in product(*ends)], dtype=np.float64).T
        moved = (self.affine - other.affine) @ corners
        return float(np.linalg.norm(moved[:3], axis=0).max())

    def is_close(self, other: Geometry, *, tolerance_voxels: float = GRID_TOLERANCE_VOXELS) -> bool:
        """Whether the shapes are equal and no corner is further apart than a part of the smallest spacing."""
        if self.shape != other.shape:
            return False
        return self.corner_distance_mm(other) <= tolerance_voxels * min(self.spacing_mm + other.spacing_mm)
