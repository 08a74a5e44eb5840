"""Positions of voxels in the patient: affine, spacing, orientation; the only module that converts between RAS and LPS.

NIfTI, nibabel and MONAI count millimetres to the Right, Anterior, Superior (RAS); DICOM, ITK and SimpleITK to the Left,
Posterior, Superior (LPS). The two differ in the sign of x and y.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medunet.errors import GeometryError

Affine = npt.NDArray[np.float64]  # 4x4, from voxel indices to RAS millimetres

# Two grids are equal if no corners are further apart than this part of the smallest spacing. Headers have float32 and
# rounded decimals (errors near 0.001 voxel), and a twentieth of a voxel changes no label.
GRID_TOLERANCE_VOXELS = 0.05

MIN_SPACING_MM = 1e-7  # below it a header is broken: electron microscopy at 1 nm is 1e-6 mm
MAX_SPACING_MM = 1e4  # above it (10 m) a header is broken

# Largest cosine between two axes that counts as perpendicular: 0.006 degrees, ten times the rounding of DICOM's
# direction cosines. The smallest gantry tilt that scanners report is 0.5 degrees (0.009).
SHEAR_TOLERANCE = 1e-4

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def flip_ras_lps(affine: npt.ArrayLike) -> Affine:
    """Convert a 4x4 matrix from indices to millimetres between RAS and LPS; the conversion is its own inverse."""
    return _LPS_FROM_RAS @ np.asarray(affine, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in the patient, without the voxels.

    Args:
        affine: 4x4 matrix from voxel indices to RAS mm, copied. A 2D image does not use the third column.
        shape: number of voxels along each of the two or three axes.

    Raises:
        GeometryError: the matrix is not 4x4, finite and regular, a spacing is impossible, or the shape is not two or
            three positive numbers.

    Examples:
        >>> geometry = Geometry(np.diag([-0.5, -0.5, 3.0, 1.0]), (512, 512, 100))
        >>> geometry.spacing_mm, geometry.axis_codes
        ((0.5, 0.5, 3.0), 'LPS')
    """

    affine: Affine
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise GeometryError("an image must have two or three axes of positive size", received=shape)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
            cause = "affine must be 4x4 and finite, with a last row of [0, 0, 0, 1]"
            raise GeometryError(cause, received=affine.tolist())
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
            expected = f"{MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm"
            raise GeometryError("impossible voxel spacing", received=spacing.tolist(), expected=expected)
        if abs(np.linalg.det(affine[:3, :3] / spacing)) < SHEAR_TOLERANCE:
            raise GeometryError("affine is singular: two axes have the same direction", received=affine.tolist())
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def from_lps(
        cls, *, origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float], shape: Sequence[int]
    ) -> "Geometry":
        """Create a geometry from ITK's origin and spacing (LPS mm, 3 numbers each) and 9 direction cosines, by row."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(np.asarray(direction, dtype=np.float64), (3, 3)) * np.asarray(spacing)
        affine[:3, 3] = origin
        return cls(flip_ras_lps(affine), tuple(shape))

    def to_lps(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Return origin, spacing and direction (by row) in LPS mm, as `SimpleITK.Image` expects them."""
        lps = flip_ras_lps(self.affine)
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        return tuple(lps[:3, 3].tolist()), tuple(spacing.tolist()), tuple((lps[:3, :3] / spacing).ravel().tolist())

    def __str__(self) -> str:
        """Return shape, spacing, orientation and the place of the first voxel in RAS, for messages."""
        spacing, first = (tuple(round(float(mm), 4) for mm in some) for some in (self.spacing_mm, self.affine[:3, 3]))
        return f"shape {self.shape}, spacing {spacing} mm, axes {self.axis_codes}, first voxel at {first} mm"

    @cached_property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each axis of the image."""
        return tuple(np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0).tolist())

    @cached_property
    def direction(self) -> Affine:
        """3x3 matrix whose columns are the unit vectors of the axes in RAS."""
        return np.asarray(self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0))

    @cached_property
    def axis_codes(self) -> str:
        """Nearest patient direction in which the index of each axis grows, such as 'RAS' or 'LPS'."""
        return "".join(nib.aff2axcodes(self.affine)[: len(self.shape)])

    @property
    def is_sheared(self) -> bool:
        """Whether two axes are not perpendicular, as with a gantry tilt."""
        cosines = self.direction.T @ self.direction
        return bool(np.abs(cosines - np.diag(np.diag(cosines))).max() > SHEAR_TOLERANCE)

    def corner_distance_mm(self, other: "Geometry") -> float:
        """Return the largest distance between corners of the same index in two grids of equal shape."""
        ends = [(0, n - 1) for n in self.shape] + [(0,)] * (3 - len(self.shape))
        corners = np.array([(*corner, 1) for corner in product(*ends)], dtype=np.float64).T
        return float(np.linalg.norm(((self.affine - other.affine) @ corners)[:3], axis=0).max())

    def is_close(self, other: "Geometry", *, tolerance_voxels: float = GRID_TOLERANCE_VOXELS) -> bool:
        """Return whether the shapes are equal and no corners differ by more than this part of the smallest spacing."""
        tolerance_mm = tolerance_voxels * min(self.spacing_mm + other.spacing_mm)
        return self.shape == other.shape and self.corner_distance_mm(other) <= tolerance_mm
