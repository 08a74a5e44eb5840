"""The grid of the slices of a series, or of one 2D image; nothing is guessed, merged or stretched.

::

    slices    |    |    |    |        a gap that fits 2 steps: a slice is missing
              0    1    2    4
    from the side, upright and with the gantry tilted:
              |    |    |             /    /    /
              |    |    |            /    /    /
              |    |    |           /    /    /      the affine keeps the shear, or the slices are shifted back

Radiographs, photographs, ultrasound and secondary captures have no position in a patient. Their pixel size is the first
of these: PixelSpacing, in the patient if the image was calibrated, else at the detector (PS3.3 10.7.1.3);
ImagerPixelSpacing, at the detector; NominalScannedPixelSpacing, on the film that was scanned; unknown: 1, as in a PNG.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medunet.errors import DataError, GeometryError
from medunet.geometry import SHEAR_TOLERANCE, Geometry
from medunet.io.options import ReadOptions, Uneven

from .header import Frame
from .phase import choose_frames, group_positions
from .references import read_dataset
from .tags import decimals

# Largest difference of one slice distance from their mean. Most positions are decimal strings rounded to 0.01 mm or
# finer; the jumps of those rounded to 0.1 mm would reach half a voxel of thin slices.
GAP_TOLERANCE_MM = 0.05
GAP_TOLERANCE_PART = 0.05  # the same as a part of the mean, for slices so thin that 0.05 mm would hide a missing one
PLANE_TOLERANCE_MM = 0.1  # largest distance of a slice from its plane of the even grid: small differences may add up
MISSING_TOLERANCE_PART = 0.1  # a gap within this part of a step from 2, 3, ... usual steps means missing slices
# Largest sideways drift from the first slice to the last that counts as upright, and largest deviation of one slice
# from the straight line through all: positions rounded to 0.1 mm can cause it.
TILT_TOLERANCE_MM = 0.1
COSINE_TOLERANCE = 1e-3  # largest deviation of direction cosines from unit length, a right angle, and between slices
PIXEL_SPACING_TOLERANCE_MM = 1e-4  # largest difference of PixelSpacing between slices
MAX_PIXEL_SPACING_MM = 100.0  # larger is a broken header: the coarsest images of patients (SPECT) have about 10 mm
MIN_PIXEL_SPACING_MM = 1e-4  # smaller (0.1 micrometre) is a broken header: finer than light microscopy

_TAGS = {
    "position": ("ImagePositionPatient", 3),
    "orientation": ("ImageOrientationPatient", 6),
    "spacing": ("PixelSpacing", 2),
}
_OTHER_SPACINGS = {
    "ImagerPixelSpacing": "spacing is that of the detector (ImagerPixelSpacing), where the patient appears magnified",
    "NominalScannedPixelSpacing": "spacing is that of the scanned film (NominalScannedPixelSpacing)",
}
_UNKNOWN_SPACING = "no PixelSpacing: the size of a pixel is unknown and counts as 1"

Vector = npt.NDArray[np.float64]


class Grid(NamedTuple):
    """Slices in the order of the third axis, and the grid (RAS) of the volume that they make up."""

    frames: tuple[Frame, ...]
    geometry: Geometry
    warnings: tuple[str, ...] = ()
    places: Vector | None = None  # of the planes, counted in slices, if slices at uneven distances are resampled
    corners: Vector | None = None  # pixel (column, row) of each slice that is the first of its plane, if shifted back


def build_grid(frames: Sequence[Frame], folder: Path, options: ReadOptions, *, planar: bool) -> Grid:
    """Sort the frames of one series, choose a phase, drop duplicates, and check that the rest is a volume.

    `planar` reads a single slice instead of a volume. A grid that is incomplete, impossible or mixed is a
    GeometryError; several phases are a DataError.
    """
    spacing, axes = _plane(frames)
    normal = np.cross(axes[0], axes[1])
    normal /= np.linalg.norm(normal)
    groups = group_positions(frames, [float(np.dot(numbers_of(frame, "position"), normal)) for frame in frames])
    ordered, warnings = choose_frames(groups, options.phase, folder)
    positions = np.array([frame.position for frame in ordered])
    if planar and len(ordered) > 1:
        cause = "series must have one slice to be a 2D image"
        raise GeometryError(cause, file=folder, received=f"{len(ordered)} slices")
    if not planar and len(ordered) == 1:
        remedy = "give the whole series, or pass spatial_dims=2"
        raise GeometryError("series has a single slice", file=folder, remedy=remedy)
    pixel = spacing[::-1]  # PixelSpacing counts rows first
    origin, step, shape = positions[0], normal, np.array([frames[0].file.columns, frames[0].file.rows])
    places = corners = None
    if not planar:
        offsets = (positions - origin) @ normal
        along = (positions[-1] - origin) / offsets[-1]  # along the stack, per mm along the normal
        _require_straight(ordered, positions - origin - np.outer(offsets, along))
        planes = np.linspace(0, offsets[-1], len(offsets))
        if not _is_even(offsets):
            planes = _even_planes(offsets, ordered, folder, options.uneven, warnings)
            places = np.interp(planes, offsets, np.arange(len(offsets)))
        gap = float(planes[-1] / (len(planes) - 1))
        step = normal * gap
        shape = np.array([*shape, len(planes)])
        slope = along - normal
        tangent = np.linalg.norm(slope)
        if tangent * offsets[-1] > TILT_TOLERANCE_MM and tangent > SHEAR_TOLERANCE:
            tilt = f"gantry tilt of {float(np.degrees(np.arctan(tangent))):.1f} degrees"
            if options.tilt == "keep":
                warnings.append(f"{tilt} kept as shear in the affine")
                step = along * gap
            else:
                warnings.append(f"{tilt} resampled to a grid with right angles")
                shifts = np.outer(planes, axes @ slope / pixel)  # sideways position of each plane in pixels
                before, after = np.floor(shifts.min(axis=0)), np.ceil(shifts.max(axis=0))
                origin = origin + (before * pixel) @ axes
                shape[:2] += (after - before).astype(int)
                corners = before - shifts
    length = float(np.linalg.norm(step))
    try:
        geometry = Geometry.from_lps(
            origin=origin.tolist(),
            spacing=[*pixel.tolist(), length],
            direction=np.column_stack([axes[0], axes[1], step / length]).ravel().tolist(),
            shape=shape.tolist(),
        )
    except GeometryError as error:
        raise error.at(folder) from error
    return Grid(tuple(ordered), geometry, tuple(warnings), places, corners)


def are_pictures(frames: Sequence[Frame]) -> bool:
    """Return whether none of the frames has a position in a patient."""
    return all(frame.position is None and frame.orientation is None for frame in frames)


def build_picture(frames: Sequence[Frame], path: Path, phase: int | None) -> Grid:
    """Return the grid of one image without a position: ``diag(spacing, 1)``, the first axis along the rows.

    A missing choice of a frame is a DataError; several files and impossible spacings are a GeometryError.
    """
    file, count = frames[0].file, len(frames)
    if any(frame.file.path != file.path for frame in frames):
        raise GeometryError("path must contain one 2D image, not several", file=path)
    if (phase is None and count > 1) or not 0 <= (phase or 0) < count:
        cause, received = f"image has {count} frames without a position", None if phase is None else f"phase={phase}"
        expected = f"--phase 0 to {count - 1}" if count > 1 else "--phase 0"
        raise DataError(cause, file=path, received=received, expected=expected)
    header = read_dataset(
        file.path, tags=[*_OTHER_SPACINGS, "PixelAspectRatio", "TotalPixelMatrixColumns"], stop_before_pixels=True
    )
    if file.n_frames > 1 and "TotalPixelMatrixColumns" in header:
        raise DataError("frames are tiles of a microscope image", file=path, remedy="export it as one TIFF or PNG")
    warnings = [f"frame {phase} of {count} read"] if count > 1 else []
    spacing = frames[phase or 0].spacing
    if spacing is not None:
        _check_spacing(spacing, "PixelSpacing", path)
    for name, warning in _OTHER_SPACINGS.items():
        if spacing is None and (spacing := decimals(header, name)) is not None:
            _check_spacing(spacing, name, path)
            warnings.append(warning)
    if spacing is None:
        aspect = decimals(header, "PixelAspectRatio") or (1.0,)
        if len(set(aspect)) > 1:
            received = f"PixelAspectRatio {aspect}"
            raise GeometryError("pixels of unknown size must be square", file=path, received=received)
        spacing = 1.0, 1.0
        warnings.append(_UNKNOWN_SPACING)
    geometry = Geometry(np.diag([spacing[1], spacing[0], 1.0, 1.0]), (file.columns, file.rows))
    return Grid((frames[phase or 0],), geometry, tuple(warnings))


def _check_spacing(spacing: tuple[float, ...], name: str, path: Path) -> None:
    # false for NaN, too
    if len(spacing) != 2 or not all(MIN_PIXEL_SPACING_MM <= value <= MAX_PIXEL_SPACING_MM for value in spacing):
        expected = f"two numbers, {MIN_PIXEL_SPACING_MM:g} to {MAX_PIXEL_SPACING_MM:g} mm"
        raise GeometryError(f"impossible {name}", file=path, received=spacing, expected=expected)


def numbers_of(frame: Frame, name: str) -> tuple[float, ...]:
    """Return a tag of several numbers, or raise a GeometryError."""
    value = getattr(frame, name)
    tag, length = _TAGS[name]
    if value is None or len(value) != length or not np.isfinite(value).all():
        what = "multi-frame image does not give the positions of its frames: no" if frame.file.n_frames > 1 else ""
        cause = f"{what or 'slice has no'} usable {tag}"
        raise GeometryError(cause, file=frame.file.path, received=value, expected=f"{length} numbers")
    return tuple(value)


def _plane(frames: Sequence[Frame]) -> tuple[Vector, Vector]:
    """Return PixelSpacing and the directions of rows and columns, which all frames must share."""
    first = frames[0]
    spacing = np.array([numbers_of(frame, "spacing") for frame in frames])
    cosines = np.array([numbers_of(frame, "orientation") for frame in frames])
    sizes = np.array([(frame.file.rows, frame.file.columns) for frame in frames])
    axes = cosines[0].reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > COSINE_TOLERANCE:
        cause, received = "ImageOrientationPatient must be orthonormal", cosines[0].tolist()
        raise GeometryError(cause, file=first.file.path, received=received)
    for frame, own in zip(frames, spacing.tolist(), strict=True):
        _check_spacing(tuple(own), "PixelSpacing", frame.file.path)
    for what, values, tolerance in (
        ("sizes", sizes, 0),
        ("PixelSpacing", spacing, PIXEL_SPACING_TOLERANCE_MM),
        ("orientations", cosines, COSINE_TOLERANCE),
    ):
        differs = np.abs(values - values[0]).max(axis=1) > tolerance
        if differs.any():
            k = int(np.argmax(differs))
            cause, received, expected = f"slices have different {what}", values[k].tolist(), values[0].tolist()
            raise GeometryError(cause, file=frames[k].file.path, received=received, expected=expected)
    return spacing[0], axes


def _require_straight(frames: Sequence[Frame], strays: Vector) -> None:
    """Reject slices that are off the line from the first to the last; `strays` are the offsets in mm."""
    stray = np.linalg.norm(strays, axis=1)
    if stray.max() > TILT_TOLERANCE_MM:
        file, received = frames[int(stray.argmax())].file.path, f"{stray.max():.3g} mm off it"
        expected = f"at most {TILT_TOLERANCE_MM} mm"
        raise GeometryError("slices must be on a straight line", file=file, received=received, expected=expected)


def _is_even(offsets: Vector) -> bool:
    gaps = np.diff(offsets)
    mean = float(gaps.mean())
    stray = np.abs(offsets - np.linspace(0, offsets[-1], len(offsets))).max()
    return bool(
        np.abs(gaps - mean).max() <= min(GAP_TOLERANCE_MM, GAP_TOLERANCE_PART * mean)
        and stray <= min(PLANE_TOLERANCE_MM, 2 * GAP_TOLERANCE_PART * mean)
    )


def _even_planes(offsets: Vector, frames: Sequence[Frame], folder: Path, uneven: Uneven, warnings: list[str]) -> Vector:
    """Return planes spread evenly between the first and the last of uneven slices.

    A gap of several usual distances means that slices are missing, unless a slice beside it is thicker than usual by
    the same factor: head CTs change from thin slices of the skull base to thick ones.
    """
    gaps = np.diff(offsets)
    mean, usual = float(gaps.mean()), float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower of two medians
    steps = gaps / usual
    missing = (np.rint(steps) >= 2) & (np.abs(steps - np.rint(steps)) <= MISSING_TOLERANCE_PART)
    thicknesses = np.array([frame.thickness or 0.0 for frame in frames])
    if not np.isfinite(thicknesses).all() or thicknesses.min() <= 0:  # SliceThickness is not known for all
        thicknesses = np.ones(len(frames))
    thicker = np.maximum(thicknesses[:-1], thicknesses[1:])
    thicker /= np.median(thicker[np.rint(steps) <= 1])
    missing &= thicker < steps * (1 - MISSING_TOLERANCE_PART)
    received = f"{gaps.min():.4g} to {gaps.max():.4g} mm"
    if missing.any():
        count = int(np.rint(steps[missing]).sum() - missing.sum())
        cause = "slice distances are uneven: " + ("a slice is missing" if count == 1 else f"{count} slices are missing")
        raise GeometryError(cause, file=folder, received=received, expected=f"{usual:.4g} mm")
    if uneven == "refuse":
        expected = f"{mean:.4g} +- {min(GAP_TOLERANCE_MM, GAP_TOLERANCE_PART * mean):.2g} mm"
        cause, remedy = "slice distances are uneven", "pass --uneven resample, or complete the series"
        raise GeometryError(cause, file=folder, received=received, expected=expected, remedy=remedy)
    n_planes = max(round(float(offsets[-1]) / usual), 1) + 1
    warnings.append(f"slices at uneven distances ({received}) resampled to {offsets[-1] / (n_planes - 1):.4g} mm")
    return np.linspace(0, offsets[-1], n_planes)


def resample(volume: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    """Interpolate a volume ``(columns, rows, slices)`` linearly to the planes and corners of its grid.

    Voxels that a shift uncovers get the smallest value of the volume.
    """
    if grid.places is not None:
        slices, volume = volume, np.empty((*volume.shape[:2], len(grid.places)), dtype=np.float32)
        for k, place in enumerate(grid.places):
            below = min(int(place), slices.shape[2] - 2)
            weight = place - below
            volume[..., k] = (1 - weight) * slices[..., below] + weight * slices[..., below + 1]
    if grid.corners is None:
        return volume
    result, lowest = np.empty(grid.geometry.shape, dtype=np.float32), float(volume.min())
    for k, corner in enumerate(grid.corners):
        plane = volume[..., k]
        result[..., k] = ndimage.affine_transform(plane, np.ones(2), corner, result.shape[:2], order=1, cval=lowest)
    return result
