"""The grid that the slices of a series make up: nothing is guessed, merged or stretched.

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
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medunet.errors import GeometryError
from medunet.geometry import SHEAR_TOLERANCE, Geometry
from medunet.io.options import ReadOptions, Uneven

from .header import Frame
from .phase import choose_frames, group_positions

GAP_TOLERANCE_MM = 0.05
"""Largest difference of one slice distance from their mean. Positions are decimal strings, rounded to 0.01 mm at most
times; the jumps of those rounded to 0.1 mm would reach half a voxel of thin slices."""

GAP_TOLERANCE_PART = 0.05
"""The same as a part of the mean, for slices so thin that `GAP_TOLERANCE_MM` would pass a missing one."""

PLANE_TOLERANCE_MM = 0.1
"""Largest distance of a slice from its plane of the even grid: small differences of the gaps may add up."""

MISSING_TOLERANCE_PART = 0.1
"""A gap within this part of a step from 2, 3, ... usual steps means that slices are missing."""

TILT_TOLERANCE_MM = 0.1
"""Largest sideways drift from the first slice to the last that still counts as upright, and largest deviation of one
slice from the straight line through them: what positions rounded to 0.1 mm can make."""

COSINE_TOLERANCE = 1e-3
"""Largest deviation of direction cosines from unit length, from a right angle, and between slices."""

PIXEL_SPACING_TOLERANCE_MM = 1e-4
"""Largest difference of PixelSpacing between slices."""

MAX_PIXEL_SPACING_MM = 100.0
"""A pixel larger than this is a broken header: the coarsest images of patients (SPECT) have about 10 mm."""

MIN_PIXEL_SPACING_MM = 1e-4
"""A pixel smaller than this (0.1 micrometre) is a broken header: that is finer than light microscopy."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Slices in the order of the third axis, and the grid of the volume they make up.

    Args:
        frames: in the order of `offsets`.
        offsets: where they lie along the normal, mm from the first.
        planes: where the planes of the volume lie, evenly.
        interpolate: whether the slices are so uneven that the planes must be interpolated.
        shifts: sideways position of each plane in pixels (columns, rows), when the tilt is to be resampled.
        margins: pixels added to the plane for the shifts, (columns before, rows before).
        geometry: grid of the finished volume, in RAS.
        warnings: what was unusual.
    """

    frames: tuple[Frame, ...]
    offsets: npt.NDArray[np.float64]
    planes: npt.NDArray[np.float64]
    interpolate: bool
    shifts: npt.NDArray[np.float64] | None
    margins: tuple[int, int]
    geometry: Geometry
    warnings: tuple[str, ...]


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
        folder: what was asked for, for errors.
        options: `uneven`, `tilt` and `phase` are used.
        planar: whether a single slice is wanted, not a volume.
        same_pixels: compares two frames at one position.

    Raises:
        GeometryError: a grid that is incomplete, impossible or mixed.
        DataError: several phases.
    """
    warnings: list[str] = []
    spacing, axes = _plane(frames)
    normal = np.cross(axes[0], axes[1])
    normal /= np.linalg.norm(normal)
    groups = group_positions(frames, [float(np.dot(_numbers(f, "position", 3), normal)) for f in frames])
    ordered, notes = choose_frames(groups, options.phase, folder, same_pixels)
    warnings += notes
    positions = np.array([_numbers(f, "position", 3) for f in ordered])
    if planar != (len(ordered) == 1):
        raise GeometryError(
            "series has several slices where an image in the plane was asked for" if planar else _SINGLE,
            file=folder,
            received=f"{len(ordered)} slices",
            expected="1 slice" if planar else "at least 2 slices at different positions",
            remedy="read it as a volume" if planar else "give the whole series, or ask for spatial_dims=2",
        )
    shape = (frames[0].file.columns, frames[0].file.rows)
    geometry_of = partial(_geometry, axes=axes, spacing=spacing, folder=folder)
    if planar:
        geometry = geometry_of(positions[0], step=normal, shape=shape)
        return Grid(tuple(ordered), np.zeros(1), np.zeros(1), False, None, (0, 0), geometry, tuple(warnings))

    offsets = (positions - positions[0]) @ normal
    step = (positions[-1] - positions[0]) / offsets[-1]  # along the stack, per mm along the normal
    stray = np.linalg.norm(positions - positions[0] - np.outer(offsets, step), axis=1)
    if stray.max() > TILT_TOLERANCE_MM:
        raise GeometryError(
            "slices do not lie on a straight line",
            file=ordered[int(stray.argmax())].file.path,
            received=f"{stray.max():.3g} mm beside it",
            expected=f"at most {TILT_TOLERANCE_MM} mm",
            remedy="split the series where the table was moved",
        )
    interpolate = not _is_even(offsets)
    planes = (
        _planes(offsets, _thicknesses(ordered), folder, options.uneven, warnings)
        if interpolate
        else np.linspace(0, offsets[-1], len(offsets))
    )
    gap = float(planes[-1] / (len(planes) - 1))
    slope = step - normal
    drift = float(np.linalg.norm(slope) * offsets[-1])
    if drift <= TILT_TOLERANCE_MM or np.linalg.norm(slope) <= SHEAR_TOLERANCE:
        geometry = geometry_of(positions[0], step=normal * gap, shape=(*shape, len(planes)))
        return Grid(tuple(ordered), offsets, planes, interpolate, None, (0, 0), geometry, tuple(warnings))

    angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if options.tilt == "keep":
        warnings.append(f"gantry tilt of {angle:.1f} degrees kept as shear in the affine")
        geometry = geometry_of(positions[0], step=step * gap, shape=(*shape, len(planes)))
        return Grid(tuple(ordered), offsets, planes, interpolate, None, (0, 0), geometry, tuple(warnings))
    warnings.append(f"gantry tilt of {angle:.1f} degrees resampled to a grid with right angles")
    per_mm = np.array([slope @ axes[0] / spacing[1], slope @ axes[1] / spacing[0]])
    shifts = np.outer(planes, per_mm)
    before = np.floor(shifts.min(axis=0)).astype(int)
    after = np.ceil(shifts.max(axis=0)).astype(int)
    origin = positions[0] + before[0] * spacing[1] * axes[0] + before[1] * spacing[0] * axes[1]
    wide = (shape[0] + int(after[0] - before[0]), shape[1] + int(after[1] - before[1]), len(planes))
    geometry = geometry_of(origin, step=normal * gap, shape=wide)
    margins = (int(-before[0]), int(-before[1]))
    return Grid(tuple(ordered), offsets, planes, interpolate, shifts, margins, geometry, tuple(warnings))


_SINGLE = "series has a single slice"


def _numbers(frame: Frame, name: Literal["position", "orientation", "spacing"], length: int) -> tuple[float, ...]:
    """A tag of several numbers, or a GeometryError."""
    value = getattr(frame, name)
    if value is None or len(value) != length or not np.isfinite(value).all():
        tag = {"position": "ImagePositionPatient", "orientation": "ImageOrientationPatient", "spacing": "PixelSpacing"}
        what = "multi-frame image does not say where its frames lie: no" if frame.file.n_frames > 1 else "slice has no"
        raise GeometryError(
            f"{what} usable {tag[name]}",
            file=frame.file.path,
            received=value,
            expected=f"{length} numbers",
            remedy="export the original series",
        )
    return tuple(value)


def _plane(frames: Sequence[Frame]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """PixelSpacing and the directions of rows and columns, which all frames must share."""
    first = frames[0]
    spacing = np.array(_numbers(first, "spacing", 2))
    cosines = np.array(_numbers(first, "orientation", 6))
    axes = cosines.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > COSINE_TOLERANCE:
        raise GeometryError(
            "ImageOrientationPatient is not orthonormal",
            file=first.file.path,
            received=cosines.tolist(),
            remedy="export the original series",
        )
    for frame in frames:
        own = np.array(_numbers(frame, "spacing", 2))
        if own.min() < MIN_PIXEL_SPACING_MM or own.max() > MAX_PIXEL_SPACING_MM:
            raise GeometryError(
                "impossible PixelSpacing",
                file=frame.file.path,
                received=own.tolist(),
                expected=f"{MIN_PIXEL_SPACING_MM:g} to {MAX_PIXEL_SPACING_MM:g} mm",
                remedy="export the original series",
            )
        size, expected = (frame.file.rows, frame.file.columns), (first.file.rows, first.file.columns)
        if size != expected:
            raise _mixed("slices have different sizes", frame, size, expected)
        if np.abs(own - spacing).max() > PIXEL_SPACING_TOLERANCE_MM:
            raise _mixed("slices have different PixelSpacing", frame, own.tolist(), spacing.tolist())
        if np.abs(_numbers(frame, "orientation", 6) - cosines).max() > COSINE_TOLERANCE:
            raise _mixed("slices have different orientations", frame, frame.orientation, cosines.tolist())
    return spacing, axes


def _mixed(cause: str, frame: Frame, received: object, expected: object) -> GeometryError:
    return GeometryError(
        cause, file=frame.file.path, received=received, expected=expected, remedy="give a folder with one stack only"
    )


def _is_even(offsets: npt.NDArray[np.float64]) -> bool:
    gaps = np.diff(offsets)
    mean = float(gaps.mean())
    stray = np.abs(offsets - np.linspace(0, offsets[-1], len(offsets))).max()
    return bool(
        np.abs(gaps - mean).max() <= min(GAP_TOLERANCE_MM, GAP_TOLERANCE_PART * mean)
        and stray <= min(PLANE_TOLERANCE_MM, 2 * GAP_TOLERANCE_PART * mean)
    )


def _thicknesses(frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    """SliceThickness of frames in mm; the same for all if it is not known for all."""
    values = np.array([frame.thickness or 0.0 for frame in frames], dtype=np.float64)
    return values if np.isfinite(values).all() and values.min() > 0 else np.ones(len(frames))


def _planes(
    offsets: npt.NDArray[np.float64],
    thicknesses: npt.NDArray[np.float64],
    folder: Path,
    uneven: Uneven,
    warnings: list[str],
) -> npt.NDArray[np.float64]:
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


def _geometry(
    origin: npt.NDArray[np.float64],
    *,
    axes: npt.NDArray[np.float64],
    spacing: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    folder: Path,
) -> Geometry:
    length = float(np.linalg.norm(step))
    try:
        return Geometry.from_lps(
            origin=origin.tolist(),
            spacing=(float(spacing[1]), float(spacing[0]), length),  # PixelSpacing counts rows first
            direction=np.column_stack([axes[0], axes[1], step / length]).ravel().tolist(),
            shape=shape,
        )
    except GeometryError as error:
        raise error.at(folder) from error
