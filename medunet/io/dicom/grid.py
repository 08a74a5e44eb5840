"""The grid of the slices of a series; nothing is guessed, merged or stretched.

::

    slices    |    |    |    |        a gap that fits 2 steps: a slice is missing
              0    1    2    4
    from the side, upright and with the gantry tilted (t: along the normal, s: sideways):
              |    |    |             /    /    /
              |    |    |            /    /    /
              |    |    |           /    /    /      the affine keeps the shear, or the slices are shifted back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medunet.errors import GeometryError
from medunet.geometry import SHEAR_TOLERANCE, Geometry
from medunet.io.options import ReadOptions, Uneven

from .header import Frame
from .phase import choose_frames, group_positions
from .values import damaged

GAP_TOLERANCE_MM = 0.05
"""Largest difference of one slice distance from their mean. Most positions are decimal strings rounded to 0.01 mm or
finer; the jumps of those rounded to 0.1 mm would reach half a voxel of thin slices."""

GAP_TOLERANCE_PART = 0.05
"""The same as a part of the mean, for slices so thin that `GAP_TOLERANCE_MM` would accept a missing one."""

PLANE_TOLERANCE_MM = 0.1
"""Largest distance of a slice from its plane of the even grid: small differences of the gaps may add up."""

MISSING_TOLERANCE_PART = 0.1
"""A gap within this part of a step from 2, 3, ... usual steps means that slices are missing."""

TILT_TOLERANCE_MM = 0.1
"""Largest sideways drift from the first slice to the last that counts as upright, and largest deviation of one slice
from the straight line through all: positions rounded to 0.1 mm can cause it."""

COSINE_TOLERANCE = 1e-3  # largest deviation of direction cosines from unit length, a right angle, and between slices
PIXEL_SPACING_TOLERANCE_MM = 1e-4  # largest difference of PixelSpacing between slices
MAX_PIXEL_SPACING_MM = 100.0  # larger is a broken header: the coarsest images of patients (SPECT) have about 10 mm
MIN_PIXEL_SPACING_MM = 1e-4  # smaller (0.1 micrometre) is a broken header: finer than light microscopy

_TAGS = {
    "position": ("ImagePositionPatient", 3),
    "orientation": ("ImageOrientationPatient", 6),
    "spacing": ("PixelSpacing", 2),
}

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Slices in the order of the third axis, and the grid of the volume that they make up.

    Args:
        frames: in the order of `offsets`.
        geometry: grid of the finished volume, in RAS.
        offsets: positions of the slices along the normal, mm from the first.
        planes: evenly spaced positions of the planes of the volume.
        interpolate: whether the slices are so uneven that the planes must be interpolated.
        shifts: sideways position of each plane in pixels (columns, rows), if the tilt is to be resampled.
        margins: pixels added to the plane for the shifts, (columns before, rows before).
        warnings: what was unusual.
    """

    frames: tuple[Frame, ...]
    geometry: Geometry
    offsets: Vector | None = None
    planes: Vector | None = None
    interpolate: bool = False
    shifts: Vector | None = None
    margins: tuple[int, int] = (0, 0)
    warnings: tuple[str, ...] = ()

    @property
    def is_resampled(self) -> bool:
        """Whether the volume has other planes than the series."""
        return self.interpolate or self.shifts is not None


def build_grid(
    frames: Sequence[Frame],
    folder: Path,
    *,
    options: ReadOptions,
    planar: bool,
    same_pixels: Callable[[Frame, Frame], bool],
) -> Grid:
    """Sort the frames, choose a phase, drop duplicates, and check that the rest is a volume.

    Args:
        frames: of one series.
        folder: the path to read, for errors.
        options: `uneven`, `tilt` and `phase` are used.
        planar: whether to read a single slice instead of a volume.
        same_pixels: compares two frames at one position.

    Raises:
        GeometryError: a grid that is incomplete, impossible or mixed.
        DataError: several phases.
    """
    spacing, axes = _plane(frames)
    normal = np.cross(axes[0], axes[1])
    normal /= np.linalg.norm(normal)
    groups = group_positions(frames, [float(np.dot(_numbers(f, "position"), normal)) for f in frames])
    ordered, warnings = choose_frames(groups, options.phase, folder, same_pixels)
    positions = np.array([_numbers(f, "position") for f in ordered])
    if planar != (len(ordered) == 1):
        raise GeometryError(
            "series must have one slice to be an image in the plane" if planar else "series has a single slice",
            file=folder,
            received=f"{len(ordered)} slices",
            expected="1 slice" if planar else "at least 2 slices at different positions",
            remedy="read it as a volume" if planar else "give the whole series, or pass spatial_dims=2",
        )
    shape = (frames[0].file.columns, frames[0].file.rows)

    def grid(origin: Vector, step: Vector, shape: tuple[int, ...], **values: Any) -> Grid:
        length = float(np.linalg.norm(step))
        try:
            geometry = Geometry.from_lps(
                origin=origin.tolist(),
                spacing=(float(spacing[1]), float(spacing[0]), length),  # PixelSpacing counts rows first
                direction=np.column_stack([axes[0], axes[1], step / length]).ravel().tolist(),
                shape=shape,
            )
        except GeometryError as error:
            raise error.at(folder) from error
        return Grid(tuple(ordered), geometry, warnings=tuple(warnings), **values)

    if planar:
        return grid(positions[0], normal, shape)
    offsets = (positions - positions[0]) @ normal
    step = (positions[-1] - positions[0]) / offsets[-1]  # along the stack, per mm along the normal
    stray = np.linalg.norm(positions - positions[0] - np.outer(offsets, step), axis=1)
    if stray.max() > TILT_TOLERANCE_MM:
        raise GeometryError(
            "slices must be on a straight line",
            file=ordered[int(stray.argmax())].file.path,
            received=f"{stray.max():.3g} mm beside it",
            expected=f"at most {TILT_TOLERANCE_MM} mm",
            remedy="split the series where the table was moved",
        )
    interpolate = not _is_even(offsets)
    if interpolate:
        planes = _planes(offsets, _thicknesses(ordered), folder, options.uneven, warnings)
    else:
        planes = np.linspace(0, offsets[-1], len(offsets))
    values: dict[str, Any] = {"offsets": offsets, "planes": planes, "interpolate": interpolate}
    gap = float(planes[-1] / (len(planes) - 1))
    slope = step - normal
    drift = float(np.linalg.norm(slope) * offsets[-1])
    if drift <= TILT_TOLERANCE_MM or np.linalg.norm(slope) <= SHEAR_TOLERANCE:
        return grid(positions[0], normal * gap, (*shape, len(planes)), **values)

    angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if options.tilt == "keep":
        warnings.append(f"gantry tilt of {angle:.1f} degrees kept as shear in the affine")
        return grid(positions[0], step * gap, (*shape, len(planes)), **values)
    warnings.append(f"gantry tilt of {angle:.1f} degrees resampled to a grid with right angles")
    shifts = np.outer(planes, [slope @ axes[0] / spacing[1], slope @ axes[1] / spacing[0]])
    before = np.floor(shifts.min(axis=0)).astype(int)
    after = np.ceil(shifts.max(axis=0)).astype(int)
    origin = positions[0] + before[0] * spacing[1] * axes[0] + before[1] * spacing[0] * axes[1]
    wide = (shape[0] + int(after[0] - before[0]), shape[1] + int(after[1] - before[1]), len(planes))
    margins = (int(-before[0]), int(-before[1]))
    return grid(origin, normal * gap, wide, shifts=shifts, margins=margins, **values)


def _numbers(frame: Frame, name: str) -> tuple[float, ...]:
    """Return a tag of several numbers, or raise a GeometryError."""
    value = getattr(frame, name)
    tag, length = _TAGS[name]
    if value is None or len(value) != length or not np.isfinite(value).all():
        what = "multi-frame image does not give the positions of its frames: no" if frame.file.n_frames > 1 else ""
        cause, expected = f"{what or 'slice has no'} usable {tag}", f"{length} numbers"
        raise damaged(cause, frame.file.path, GeometryError, received=value, expected=expected)
    return tuple(value)


def _plane(frames: Sequence[Frame]) -> tuple[Vector, Vector]:
    """Return PixelSpacing and the directions of rows and columns, which all frames must share."""
    first = frames[0]
    spacing = np.array([_numbers(frame, "spacing") for frame in frames])
    cosines = np.array([_numbers(frame, "orientation") for frame in frames])
    sizes = np.array([(frame.file.rows, frame.file.columns) for frame in frames])
    axes = cosines[0].reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > COSINE_TOLERANCE:
        cause = "ImageOrientationPatient must be orthonormal"
        raise damaged(cause, first.file.path, GeometryError, received=cosines[0].tolist())
    for frame, own in zip(frames, spacing, strict=True):
        if own.min() < MIN_PIXEL_SPACING_MM or own.max() > MAX_PIXEL_SPACING_MM:
            expected = f"{MIN_PIXEL_SPACING_MM:g} to {MAX_PIXEL_SPACING_MM:g} mm"
            raise damaged(
                "impossible PixelSpacing", frame.file.path, GeometryError, received=own.tolist(), expected=expected
            )
    for what, values, tolerance in (
        ("sizes", sizes, 0),
        ("PixelSpacing", spacing, PIXEL_SPACING_TOLERANCE_MM),
        ("orientations", cosines, COSINE_TOLERANCE),
    ):
        differs = np.abs(values - values[0]).max(axis=1) > tolerance
        if differs.any():
            k = int(np.argmax(differs))
            raise GeometryError(
                f"slices have different {what}",
                file=frames[k].file.path,
                received=values[k].tolist(),
                expected=values[0].tolist(),
                remedy="give a folder with one stack only",
            )
    return spacing[0], axes


def _is_even(offsets: Vector) -> bool:
    gaps = np.diff(offsets)
    mean = float(gaps.mean())
    stray = np.abs(offsets - np.linspace(0, offsets[-1], len(offsets))).max()
    return bool(
        np.abs(gaps - mean).max() <= min(GAP_TOLERANCE_MM, GAP_TOLERANCE_PART * mean)
        and stray <= min(PLANE_TOLERANCE_MM, 2 * GAP_TOLERANCE_PART * mean)
    )


def _thicknesses(frames: Sequence[Frame]) -> Vector:
    """Return SliceThickness of frames in mm; the same for all if it is not known for all."""
    values = np.array([frame.thickness or 0.0 for frame in frames], dtype=np.float64)
    return values if np.isfinite(values).all() and values.min() > 0 else np.ones(len(frames))


def _planes(offsets: Vector, thicknesses: Vector, folder: Path, uneven: Uneven, warnings: list[str]) -> Vector:
    """Return planes spread evenly between the first and the last of uneven slices.

    A gap of several usual distances means that slices are missing, unless a slice beside it is thicker than usual by
    the same factor: head CTs change from thin slices of the skull base to thick ones.
    """
    gaps = np.diff(offsets)
    mean, usual = float(gaps.mean()), float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower of two medians
    steps = gaps / usual
    missing = (np.rint(steps) >= 2) & (np.abs(steps - np.rint(steps)) <= MISSING_TOLERANCE_PART)
    thicker = np.maximum(thicknesses[:-1], thicknesses[1:])
    thicker /= np.median(thicker[np.rint(steps) <= 1])
    missing &= thicker < steps * (1 - MISSING_TOLERANCE_PART)
    received = f"{gaps.min():.4g} to {gaps.max():.4g} mm"
    if missing.any():
        count = int(np.rint(steps[missing]).sum() - missing.sum())
        raise GeometryError(
            "slice distances are uneven: " + ("a slice is missing" if count == 1 else f"{count} slices are missing"),
            file=folder,
            received=received,
            expected=f"{usual:.4g} mm",
            remedy="complete the series",
        )
    if uneven == "refuse":
        raise GeometryError(
            "slice distances are uneven",
            file=folder,
            received=received,
            expected=f"{mean:.4g} +- {min(GAP_TOLERANCE_MM, GAP_TOLERANCE_PART * mean):.2g} mm",
            remedy="pass --uneven resample, or complete the series",
        )
    n_planes = max(round(float(offsets[-1]) / usual), 1) + 1
    warnings.append(f"slices at uneven distances ({received}) resampled to {offsets[-1] / (n_planes - 1):.4g} mm")
    return np.linspace(0, offsets[-1], n_planes)


def resample(volume: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    """Interpolate a volume ``(columns, rows, slices)`` linearly to the planes and shifts of its grid.

    Voxels that the shifts uncover get the smallest value of the volume.
    """
    if grid.interpolate and grid.offsets is not None and grid.planes is not None:
        volume = _even(volume, grid.offsets, grid.planes)
    if grid.shifts is None:
        return volume
    columns, rows, _ = grid.geometry.shape
    result = np.empty(grid.geometry.shape, dtype=np.float32)
    lowest = float(volume.min())
    for k, shift in enumerate(grid.shifts):
        # output index i is column i - margin of the first slice, and this slice begins `shift` columns further
        offset = -np.array(grid.margins, dtype=np.float64) - shift
        plane = ndimage.affine_transform(volume[..., k], np.ones(2), offset, (columns, rows), order=1, cval=lowest)
        result[..., k] = plane
    return result


def _even(volume: npt.NDArray[np.float32], offsets: Vector, planes: Vector) -> npt.NDArray[np.float32]:
    result = np.empty((*volume.shape[:2], len(planes)), dtype=np.float32)
    below = np.clip(np.searchsorted(offsets, planes, side="right") - 1, 0, len(offsets) - 2)
    weights = (planes - offsets[below]) / (offsets[below + 1] - offsets[below])
    for k, (index, weight) in enumerate(zip(below, weights, strict=True)):
        result[..., k] = (1 - weight) * volume[..., index] + weight * volume[..., index + 1]
    return result
