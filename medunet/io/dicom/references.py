"""The DICOM slices that a volume was read from: what DICOM SEG and RTSTRUCT refer to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medunet.errors import DataError, GeometryError, SecurityError
from medunet.geometry import Geometry, flip_ras_lps
from medunet.io.lattice import LATTICE_TOLERANCE_VOXELS
from medunet.io.limits import refuse_deflate_bomb
from medunet.io.record import SourceFrame

from .header import looks_like_dicom
from .values import text
from .zipped import unpacked

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes Segmentation Storage and Label Map Segmentation Storage."""

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
"""SOP class RT Structure Set Storage."""

_PREAMBLE = 128
_NEW_WRITER = int(pydicom.__version__.partition(".")[0]) >= 3
"""pydicom 3 renamed what makes `save_as` write a whole file."""


@dataclass(frozen=True)
class SourcePlane:
    """One slice of the source.

    Args:
        header: of its file, without pixels.
        frame: number from 1 in a multi-frame file, else None.
        geometry: its grid ``(columns, rows, 1)``.
    """

    header: Dataset
    frame: int | None
    geometry: Geometry


def read_dataset(path: Path, *, tags: Sequence[str] | None = None, stop_before_pixels: bool = False) -> FileDataset:
    """Read a DICOM file: all of it, these tags only, or what precedes the pixels.

    Raises:
        DataError: it is not DICOM, or it is damaged.
        SecurityError: deflated, and far larger than images are.
    """
    try:
        with path.open("rb") as file:
            refuse_deflate_bomb(file, path)
            names = None if tags is None else list(tags)
            return pydicom.dcmread(file, specific_tags=names, stop_before_pixels=stop_before_pixels)
    except SecurityError:
        raise
    except Exception as error:  # pydicom raises many kinds for damaged bytes
        raise DataError(f"cannot be read as DICOM: {type(error).__name__}", file=path) from error


def storage_class(path: Path) -> str:
    """Return the SOP class UID of a DICOM file, or '' for another file.

    Raises:
        DataError: the file is damaged.
    """
    if not looks_like_dicom(path):
        return ""
    header = read_dataset(path, tags=["SOPClassUID"])
    try:
        return text(header, "SOPClassUID")
    except NotImplementedError as error:  # an empty value of an unknown type
        raise DataError(f"cannot be read as DICOM: {type(error).__name__}", file=path) from error


def read_planes(frames: Sequence[SourceFrame], geometry: Geometry) -> tuple[SourcePlane, ...]:
    """Read the headers of the slices that a volume was read from, in the order of its last axis.

    Args:
        frames: at least one, as the reader recorded them in `ReadRecord.frames`.
        geometry: of the volume ``(columns, rows, slices)`` that the reader gave.

    Raises:
        DataError: a file can no longer be read, or lacks the identifiers that references need.
        GeometryError: the frames are not the volume's slices in number or position.
    """
    if len(frames) != geometry.shape[2]:
        raise GeometryError(
            "each slice of the volume must be a slice of the series",
            file=frames[0].file.parent,
            received=f"{geometry.shape[2]} slices",
            expected=len(frames),
        )
    headers = _headers([file for file, _ in frames])
    planes = []
    for index, (file, frame) in enumerate(frames):
        try:
            plane = _plane(headers[file], frame)
        except Exception as error:  # as in read_dataset: values are converted when they are asked for
            raise DataError(f"damaged DICOM header: {type(error).__name__}", file=file) from error
        if plane is None or not _is_slice(plane.geometry, geometry, index):
            raise GeometryError(
                "a slice of the series cannot be referred to: its header has no position, or not the slice's", file=file
            )
        planes.append(plane)
    return tuple(planes)


def _headers(files: Sequence[Path]) -> dict[Path, Dataset]:
    """Read the headers of files, or of the files of one archive, which are named as if it were their folder."""
    archive = files[0].parent
    headers = {}
    with unpacked(archive) as inside:
        for file in dict.fromkeys(files):
            real = file if inside == archive else inside / file.name
            try:
                headers[file] = _referable(read_dataset(real, stop_before_pixels=True), real)
            except (DataError, SecurityError):
                raise
            except Exception as error:  # as in read_dataset: values are converted when they are asked for
                raise DataError(f"damaged DICOM header: {type(error).__name__}", file=real) from error
    return headers


def _referable(header: Dataset, file: Path) -> Dataset:
    """Return a header that has the identifiers that references to it need."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
    missing = [name for name in names if not header.get(name)]
    if missing:
        raise DataError(f"the header lacks {', '.join(missing)}, which references need", file=file)
    return header


def _plane(header: Dataset, frame: int) -> SourcePlane | None:
    shared, groups = frame_groups(header)
    if not groups and int(header.get("NumberOfFrames") or 1) == 1:
        number, geometry = None, plane_geometry(header)
    elif frame < len(groups):
        number, geometry = frame + 1, plane_geometry(header, groups[frame], shared)
    else:
        return None
    return None if geometry is None else SourcePlane(header, number, geometry)


def _is_slice(plane: Geometry, volume: Geometry, index: int) -> bool:
    """Whether a plane lies where a slice of a volume lies."""
    columns, rows = volume.shape[:2]
    if plane.shape[:2] != (columns, rows):
        return False
    to_volume = np.linalg.inv(volume.affine) @ plane.affine
    corners = np.array([(0, 0, 0, 1), (columns - 1, 0, 0, 1), (0, rows - 1, 0, 1)])
    away = corners @ to_volume.T - (corners + np.array((0, 0, index, 0)))
    return bool(np.abs(away).max() <= LATTICE_TOLERANCE_VOXELS)


def copy_values(source: Dataset, target: Dataset, names: Sequence[str]) -> None:
    """Copy texts unchanged, without validation, because scanners break DICOM's rules; '' for what the source lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in names:
            value = source.get(name)
            text = "" if value is None else str(value)
            target.add(DataElement(name, dictionary_VR(name), text, validation_mode=IGNORE))


LINKS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
)
"""Attributes that make an object part of the patient's study. Results contain nothing else about the patient."""


def series_number(source: Dataset) -> int:
    """Return the last three digits of the source's SeriesNumber, or 0: 1003 and 2003 are results of series 3."""
    try:
        return int(source.get("SeriesNumber") or 0) % 1000
    except ValueError:
        return 0


def save_dataset(dataset: Dataset, path: Path | BinaryIO, *, implicit: bool = False) -> None:
    """Write a whole DICOM file, little endian, with pydicom 2 or 3.

    Args:
        dataset: with SOPClassUID and SOPInstanceUID.
        path: of the file, or an open file.
        implicit: leave types out of the file: only so can a value have more than 64 kB.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    file = FileDataset(BytesIO(), dataset, file_meta=meta, preamble=bytes(_PREAMBLE))
    if _NEW_WRITER:
        file.save_as(path, enforce_file_format=True)
    else:
        file.is_little_endian, file.is_implicit_VR = True, implicit
        file.save_as(path, write_like_original=False)


def plane_geometry(header: Dataset, frame: Dataset | None = None, shared: Dataset | None = None) -> Geometry | None:
    """Return the grid ``(columns, rows, 1)`` of a slice, or None if it has no position; its third axis is 1 mm long.

    Args:
        header: of a single slice or of a multi-frame file.
        frame: functional groups of one frame.
        shared: functional groups of all frames.
    """
    found = []
    for group, name, length in (
        ("PlanePositionSequence", "ImagePositionPatient", 3),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        ("PixelMeasuresSequence", "PixelSpacing", 2),
    ):
        places = [place[group][0] for place in (frame, shared) if place is not None and place.get(group)]
        value = (places[0] if places else header).get(name)
        try:
            numbers = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            return None
        if numbers.shape != (length,):
            return None
        found.append(numbers)
    position, cosines, spacing = found
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * spacing[1]  # PixelSpacing counts rows first
    affine[:3, 1] = cosines[3:] * spacing[0]
    affine[:3, 2] = np.cross(cosines[:3], cosines[3:])
    affine[:3, 3] = position
    try:
        return Geometry(flip_ras_lps(affine), (int(header.Columns), int(header.Rows), 1))
    except GeometryError:
        return None


def frame_groups(header: Dataset) -> tuple[Dataset | None, list[Dataset]]:
    """Return the shared and the per-frame functional groups of a multi-frame file."""
    shared = header.get("SharedFunctionalGroupsSequence")
    return (shared[0] if shared else None), list(header.get("PerFrameFunctionalGroupsSequence") or ())
