"""A folder of DICOM slices as one volume: the headers are verified by our own rules, then GDCM decodes the pixels.

What is read: one series of single-frame, single-sample images on a regular, perpendicular grid. All else is refused
with the cause; nothing is guessed, merged or stretched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .images import itk_geometry, itk_voxels
from .record import ReadRecord

GAP_TOLERANCE_MM = 0.05
"""Largest difference of one slice distance from their mean. Positions are decimal strings, often rounded to 0.1 mm."""

TILT_TOLERANCE_MM = 0.05
"""Largest sideways step of a position from one slice to the next, measured in the plane of the slice: more is a tilted
gantry or a moved table."""

COSINE_TOLERANCE = 1e-3
"""Largest deviation of direction cosines from unit length, from a right angle, and between slices."""

PIXEL_SPACING_TOLERANCE_MM = 1e-4
"""Largest difference of PixelSpacing between slices."""

_TAGS = [
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
]
"""What is read of each header: no tag with the patient's identity."""


@dataclass(frozen=True)
class _Slice:
    path: Path
    header: pydicom.Dataset
    pixel_bytes: int
    """Bytes from the start of the pixel data to the end of the file."""

    def triple(self, name: str, length: int) -> npt.NDArray[np.float64]:
        """A tag of several numbers, or a GeometryError."""
        value = self.header.get(name)
        try:
            numbers = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.shape != (length,) or not np.isfinite(numbers).all():
            raise GeometryError(
                f"slice has no usable {name}", file=self.path, received=value, remedy="export the original series"
            )
        return numbers


def is_dicom_folder(path: Path) -> bool:
    """Whether a folder directly holds at least one DICOM file."""
    return path.is_dir() and any(_looks_like_dicom(file) for file in sorted(path.iterdir()) if file.is_file())


def read_dicom(path: Path, *, series_uid: str | None = None) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read the series in a folder (its subfolders are not searched).

    Args:
        path: the folder.
        series_uid: SeriesInstanceUID to read where the folder holds several.

    Returns:
        Rescaled voxels ``(columns, rows, slices)`` and the record in RAS.

    Raises:
        DataError: no images, several series, several frames or samples a pixel, truncated pixel data, no codec.
        GeometryError: a grid that is incomplete, uneven, tilted or mixed.
    """
    slices, record = _verified(path, series_uid)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(s.path) for s in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)  # else the first slice's slope would decide the type of all
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DataError("pixel data cannot be decoded by GDCM", file=path, remedy="decompress the series") from error
    decoded = itk_geometry(image, path)
    if not decoded.is_close(record.geometry):
        raise GeometryError(
            "GDCM's grid contradicts the headers",
            file=path,
            received=f"{decoded.shape} {decoded.affine.tolist()}",
            expected=f"{record.geometry.shape} {record.geometry.affine.tolist()}",
        )
    return itk_voxels(image, path), record


def read_dicom_header(path: Path, *, series_uid: str | None = None) -> ReadRecord:
    """The record alone; raises as `read_dicom` but for damage inside compressed pixel data."""
    return _verified(path, series_uid)[1]


def _verified(folder: Path, series_uid: str | None) -> tuple[list[_Slice], ReadRecord]:
    slices, warnings = _find_series(folder, series_uid)
    for item in slices:
        _check_pixels(item)
    slices, geometry = _check_grid(slices, folder)
    bits = slices[0].header.get("BitsAllocated", 16)
    record = ReadRecord(path=folder, format="dicom", geometry=geometry, dtype=f"int{bits}", warnings=tuple(warnings))
    return slices, record


def _find_series(folder: Path, series_uid: str | None) -> tuple[list[_Slice], list[str]]:
    series: dict[str, list[_Slice]] = defaultdict(list)
    ignored = localizers = 0
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        item = _read_slice(path)
        if item is None:
            ignored += 1
        elif "LOCALIZER" in (item.header.get("ImageType") or ()):
            localizers += 1
        else:
            series[str(item.header.get("SeriesInstanceUID", ""))].append(item)
    if not series:
        raise DataError("folder holds no DICOM image", file=folder, remedy="give the folder that holds the slices")
    if series_uid is None and len(series) > 1:
        found = ", ".join(f"{uid} ({len(items)} images)" for uid, items in sorted(series.items()))
        raise DataError("folder holds several series", file=folder, received=found, remedy="choose one by `series_uid`")
    if series_uid is not None and series_uid not in series:
        raise DataError("folder does not hold this series", file=folder, received=series_uid, expected=sorted(series))
    warnings = [f"{ignored} files without an image ignored"] if ignored else []
    warnings += [f"{localizers} localizers dropped"] if localizers else []
    return series[series_uid if series_uid is not None else next(iter(series))], warnings


def _looks_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read_slice(path: Path) -> _Slice | None:
    """The header of an image, or None for a file that is none."""
    try:
        with path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            start = file.tell()
    except (InvalidDicomError, EOFError, ValueError, OSError, AttributeError, KeyError):
        return None
    if "Rows" not in header or "Columns" not in header:
        return None
    return _Slice(path, header, path.stat().st_size - start)


def _check_pixels(item: _Slice) -> None:
    header = item.header
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise DataError("multi-frame image", file=item.path, remedy="convert it to single slices or to NIfTI")
    samples = int(header.get("SamplesPerPixel") or 1)
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if samples != 1 or photometric != "MONOCHROME2":
        received = f"{photometric}, {samples} samples a pixel"
        raise DataError("not a plain grey image", file=item.path, received=received, expected="MONOCHROME2")
    for name in ("RescaleSlope", "RescaleIntercept"):
        value = header.get(name)
        if value is None or value == "":
            continue
        if not np.isfinite(float(value)) or (name == "RescaleSlope" and float(value) == 0):
            raise DataError(f"impossible {name}", file=item.path, received=value)
    syntax = header.file_meta.get("TransferSyntaxUID")
    needed = int(header.Rows) * int(header.Columns) * int(header.get("BitsAllocated", 16)) // 8
    if syntax is not None and not syntax.is_encapsulated and not syntax.is_deflated and item.pixel_bytes < needed:
        raise DataError(
            "truncated pixel data",
            file=item.path,
            received=f"{item.pixel_bytes} bytes",
            expected=f"{needed} bytes",
            remedy="export the series again",
        )


def _check_grid(slices: Sequence[_Slice], folder: Path) -> tuple[list[_Slice], Geometry]:
    """Slices sorted along their normal, and the grid they make."""
    first = slices[0]
    matrix = (int(first.header.Rows), int(first.header.Columns))
    spacing = first.triple("PixelSpacing", 2)
    cosines = first.triple("ImageOrientationPatient", 6)
    along_row, along_column = cosines[:3], cosines[3:]
    lengths = np.array([along_row @ along_row, along_column @ along_column])
    if np.abs(lengths - 1).max() > COSINE_TOLERANCE or abs(along_row @ along_column) > COSINE_TOLERANCE:
        raise GeometryError("ImageOrientationPatient is not orthonormal", file=first.path, received=cosines.tolist())
    for item in slices[1:]:
        size = (int(item.header.Rows), int(item.header.Columns))
        if size != matrix:
            raise GeometryError("slices have different sizes", file=item.path, received=size, expected=matrix)
        if np.abs(item.triple("PixelSpacing", 2) - spacing).max() > PIXEL_SPACING_TOLERANCE_MM:
            received = item.triple("PixelSpacing", 2).tolist()
            raise GeometryError(
                "slices have different PixelSpacing", file=item.path, received=received, expected=spacing.tolist()
            )
        if np.abs(item.triple("ImageOrientationPatient", 6) - cosines).max() > COSINE_TOLERANCE:
            raise GeometryError("slices have different orientations", file=item.path)
    if len(slices) < 2:
        raise GeometryError(
            "series has a single slice", file=folder, expected="at least 2 slices", remedy="give the whole series"
        )

    normal = np.cross(along_row, along_column)
    positions = np.array([item.triple("ImagePositionPatient", 3) for item in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    mean = float(gaps.mean())
    if gaps.min() <= GAP_TOLERANCE_MM:
        raise GeometryError("two slices have the same position", file=slices[order[int(gaps.argmin()) + 1]].path)
    if np.abs(gaps - mean).max() > GAP_TOLERANCE_MM:
        raise GeometryError(
            "slice distances are uneven: a slice may be missing",
            file=folder,
            received=f"{gaps.min():.4g} to {gaps.max():.4g} mm",
            expected=f"{mean:.4g} +- {GAP_TOLERANCE_MM} mm",
            remedy="complete the series or resample it",
        )
    sideways = np.linalg.norm(steps - np.outer(gaps, normal), axis=1).max()
    if sideways > TILT_TOLERANCE_MM:
        angle = np.degrees(np.arctan2(sideways, mean))
        raise GeometryError(
            "gantry tilt: slices are shifted sideways",
            file=folder,
            received=f"{sideways:.3g} mm a slice ({angle:.1f} degrees)",
            expected=f"at most {TILT_TOLERANCE_MM} mm",
            remedy="resample the series to a regular grid",
        )
    try:
        geometry = Geometry.from_lps(
            origin=positions[0].tolist(),
            spacing=(float(spacing[1]), float(spacing[0]), mean),  # PixelSpacing counts rows first
            direction=np.column_stack([along_row, along_column, normal]).ravel().tolist(),
            shape=(matrix[1], matrix[0], len(slices)),
        )
    except GeometryError as error:
        raise GeometryError(error.cause, file=folder, received=error.received, expected=error.expected) from error
    return [slices[i] for i in order], geometry
