"""The DICOM slices that a volume was read from, and what DICOM SEG and RTSTRUCT share when they refer to them."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pydicom
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry
from medunet.io.limits import refuse_deflate_bomb
from medunet.io.record import SourceFrame
from medunet.io.structures import LATTICE_TOLERANCE_VOXELS

from .header import looks_like_dicom
from .tags import Levels, find_decimals, frame_levels, keywords, text, typed_errors
from .zipped import unpacked

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentation, label map segmentation
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

# Attributes that make an object part of the patient's study. Results contain nothing else about the patient.
LINKS = keywords("""
    PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID AccessionNumber""")
_REQUIRED = keywords("StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID SOPInstanceUID SOPClassUID")
_NEW_WRITER = int(pydicom.__version__.partition(".")[0]) >= 3  # pydicom 3 renamed the options of `save_as`


class SourcePlane(NamedTuple):
    """One slice of the source: its file's header, its number from 1 in a multi-frame file, and its grid."""

    header: Dataset
    frame: int | None
    geometry: Geometry  # (columns, rows, 1)


def read_dataset(path: Path, *, tags: Sequence[str] | None = None, stop_before_pixels: bool = False) -> FileDataset:
    """Read a DICOM file: all of it, these tags only, or what precedes the pixels; a damaged file is a DataError."""
    with typed_errors("cannot be read as DICOM", path), path.open("rb") as file:
        refuse_deflate_bomb(file, path)
        names = None if tags is None else list(tags)
        return pydicom.dcmread(file, specific_tags=names, stop_before_pixels=stop_before_pixels)


def storage_class(path: Path) -> str:
    """Return the SOP class UID of a DICOM file, or '' for another file; a damaged file is a DataError."""
    if not looks_like_dicom(path):
        return ""
    with typed_errors("cannot be read as DICOM", path):  # an empty value of an unknown type
        return text(read_dataset(path, tags=["SOPClassUID"]), "SOPClassUID")


def read_planes(frames: Sequence[SourceFrame], geometry: Geometry) -> tuple[SourcePlane, ...]:
    """Read the headers of the slices that a volume was read from, in the order of its last axis.

    Args:
        frames: at least one, as the reader recorded them in `ReadRecord.frames`; files of an archive are named as if it
            were their folder.
        geometry: of the volume ``(columns, rows, slices)`` that the reader gave.

    Raises:
        DataError: a file can no longer be read, or lacks the identifiers that references need.
        GeometryError: the frames are not the volume's slices in number or position.
    """
    folder, n_slices = frames[0].file.parent, geometry.shape[2]
    if len(frames) != n_slices:
        cause = "each slice of the volume must be a slice of the series"
        raise GeometryError(cause, file=folder, received=f"{n_slices} slices", expected=len(frames))
    headers: dict[Path, Dataset] = {}
    planes = []
    with unpacked(folder) as inside:
        for index, (named, number) in enumerate(frames):
            file = named if inside == folder else inside / named.name
            with typed_errors("damaged DICOM header", file):
                if named not in headers:
                    headers[named] = read_dataset(file, stop_before_pixels=True)
                    if missing := [name for name in _REQUIRED if not headers[named].get(name)]:
                        raise DataError(f"the header lacks {', '.join(missing)}, which references need", file=file)
                plane = _plane(headers[named], number)
            if plane is None or not _is_slice(plane.geometry, geometry, index):
                cause = "a slice of the series cannot be referred to: its header has no position, or another one"
                raise GeometryError(cause, file=file)
            planes.append(plane)
    return tuple(planes)


def _plane(header: Dataset, number: int) -> SourcePlane | None:
    groups: list[list[Dataset]] = frame_levels(header)
    is_single = not groups and int(header.get("NumberOfFrames") or 1) == 1
    if not is_single and number >= len(groups):
        return None
    geometry = plane_geometry([header] if is_single else groups[number])
    return None if geometry is None else SourcePlane(header, None if is_single else number + 1, geometry)


def _is_slice(plane: Geometry, volume: Geometry, index: int) -> bool:
    """Return whether a plane is at the position of a slice of a volume."""
    columns, rows = volume.shape[:2]
    if plane.shape[:2] != (columns, rows):
        return False
    to_volume = np.linalg.inv(volume.affine) @ plane.affine
    corners = np.array([(0, 0, 0, 1), (columns - 1, 0, 0, 1), (0, rows - 1, 0, 1)])
    away = corners @ to_volume.T - (corners + np.array((0, 0, index, 0)))
    return bool(np.abs(away).max() <= LATTICE_TOLERANCE_VOXELS)


def plane_geometry(levels: Levels) -> Geometry | None:
    """Return the grid ``(columns, rows, 1)`` of a slice, or None if it has no position; its third axis is 1 mm long."""
    position = find_decimals(levels, "PlanePositionSequence", "ImagePositionPatient") or ()
    cosines = find_decimals(levels, "PlaneOrientationSequence", "ImageOrientationPatient") or ()
    spacing = find_decimals(levels, "PixelMeasuresSequence", "PixelSpacing") or ()
    if (len(position), len(cosines), len(spacing)) != (3, 6, 2):
        return None
    row, column = np.reshape(cosines, (2, 3))
    try:
        return Geometry.from_lps(
            origin=position,
            spacing=(spacing[1], spacing[0], 1.0),  # PixelSpacing counts rows first
            direction=np.column_stack([row, column, np.cross(row, column)]).ravel().tolist(),
            shape=(int(levels[-1].Columns), int(levels[-1].Rows), 1),
        )
    except GeometryError:
        return None


def item(**values: Any) -> Dataset:
    """Return a data set, such as an item of a sequence, with these attributes except those that are None."""
    dataset = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    """Return the item of a code sequence."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def copy_links(source: Dataset, target: Dataset) -> None:
    """Copy `LINKS` unchanged, without validation, because scanners break DICOM's rules; '' if the source has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in LINKS:
            value = source.get(name)
            written = "" if value is None else str(value)
            target.add(DataElement(name, dictionary_VR(name), written, validation_mode=IGNORE))


def series_number(source: Dataset) -> int:
    """Return the last three digits of the source's SeriesNumber, or 0: 1003 and 2003 are results of series 3."""
    try:
        return int(source.get("SeriesNumber") or 0) % 1000
    except ValueError:
        return 0


def save_dataset(dataset: Dataset, path: Path | BinaryIO, *, implicit: bool = False) -> None:
    """Write a complete DICOM file, little endian, with pydicom 2 or 3.

    `implicit` leaves types out of the file: only then can a value have more than 64 kB.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    file = FileDataset(BytesIO(), dataset, file_meta=meta, preamble=bytes(128))
    if _NEW_WRITER:
        file.save_as(path, enforce_file_format=True)
    else:
        file.is_little_endian, file.is_implicit_VR = True, implicit
        file.save_as(path, write_like_original=False)
