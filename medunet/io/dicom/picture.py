"""DICOM images without a position in a patient: radiographs, photographs, ultrasound and secondary captures.

They are images in the plane. The size of a pixel is, in this order:

1. PixelSpacing: in the patient if the image was calibrated, else at the detector (PS3.3 10.7.1.3);
2. ImagerPixelSpacing: at the detector, where the patient appears magnified;
3. NominalScannedPixelSpacing: on the film that was scanned;
4. unknown: 1, as in a PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .grid import MAX_PIXEL_SPACING_MM, MIN_PIXEL_SPACING_MM, Grid
from .header import Frame
from .references import read_dataset
from .values import decimals

_OTHER_SPACINGS = {
    "ImagerPixelSpacing": "spacing is that of the detector (ImagerPixelSpacing), where the patient appears magnified",
    "NominalScannedPixelSpacing": "spacing is that of the scanned film (NominalScannedPixelSpacing)",
}
_UNKNOWN_SPACING = "no PixelSpacing: the size of a pixel is unknown and counts as 1"
_TAGS = (*_OTHER_SPACINGS, "PixelAspectRatio", "TotalPixelMatrixColumns")


def are_pictures(frames: Sequence[Frame]) -> bool:
    """Return whether none of the frames has a position in a patient."""
    return all(frame.position is None and frame.orientation is None for frame in frames)


def build_picture(frames: Sequence[Frame], path: Path, *, phase: int | None) -> Grid:
    """Return the grid of one image in the plane: ``diag(spacing, 1)``, the first axis along the rows.

    Raises:
        DataError: several frames and none is chosen, or tiles of a microscope.
        GeometryError: several files, or an impossible spacing.
    """
    first = frames[0]
    if any(frame.file.path != first.file.path for frame in frames):
        raise GeometryError("path must have one image in the plane, not several", file=path)
    count = len(frames)
    if (phase is None and count > 1) or not 0 <= (phase or 0) < count:
        raise DataError(
            f"image has {count} frames without a position",
            file=path,
            received=None if phase is None else f"phase={phase}",
            expected=f"one of phase=0 to {count - 1}" if count > 1 else "phase=0",
            remedy=f"choose one as an image in the plane, such as --phase {min(1, count - 1)}",
        )
    chosen = frames[phase or 0]
    spacing, warning = _spacing(chosen)
    notes = [f"frame {phase} of {count} read"] if count > 1 else []
    # PixelSpacing counts rows first
    geometry = Geometry(np.diag([spacing[1], spacing[0], 1.0, 1.0]), (chosen.file.columns, chosen.file.rows))
    return Grid((chosen,), geometry, warnings=(*notes, *([warning] if warning else [])))


def _spacing(frame: Frame) -> tuple[tuple[float, ...], str]:
    """Return the distances of rows and of columns, and a warning."""
    path = frame.file.path
    header = read_dataset(path, tags=_TAGS, stop_before_pixels=True)
    if frame.file.n_frames > 1 and "TotalPixelMatrixColumns" in header:
        raise DataError("frames are the tiles of a microscope", file=path, remedy="export it as one TIFF or PNG")
    if frame.spacing is not None:
        return _checked(frame.spacing, "PixelSpacing", path), ""
    for name, warning in _OTHER_SPACINGS.items():
        if (values := decimals(header, name)) is not None:
            return _checked(values, name, path), warning
    aspect = decimals(header, "PixelAspectRatio") or (1.0, 1.0)
    if len(set(aspect)) > 1:
        raise GeometryError("pixels of unknown size must be square", file=path, received=f"PixelAspectRatio {aspect}")
    return (1.0, 1.0), _UNKNOWN_SPACING


def _checked(spacing: tuple[float, ...], name: str, path: Path) -> tuple[float, ...]:
    # false for NaN, too
    if len(spacing) == 2 and all(MIN_PIXEL_SPACING_MM <= value <= MAX_PIXEL_SPACING_MM for value in spacing):
        return spacing
    expected = f"two numbers, {MIN_PIXEL_SPACING_MM:g} to {MAX_PIXEL_SPACING_MM:g} mm"
    raise GeometryError(f"impossible {name}", file=path, received=spacing, expected=expected)
