"""The DICOM images that a label map was made from: what DICOM SEG and RTSTRUCT refer to."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medunet.errors import DataError, GeometryError, SecurityError
from medunet.geometry import Geometry, flip_ras_lps

from .lattice import LATTICE_TOLERANCE_VOXELS
from .limits import refuse_deflate_bomb

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


def read_dataset(path: Path, *, tags: Sequence[str] | None = None) -> FileDataset:
    """A DICOM file, whole or these tags only.

    Raises:
        DataError: it is none, or it is damaged.
        SecurityError: deflated, and far larger than images are.
    """
    try:
        with path.open("rb") as file:
            refuse_deflate_bomb(file, path)
            return pydicom.dcmread(file, specific_tags=None if tags is None else list(tags))
    except SecurityError:
        raise
    except Exception as error:  # pydicom raises many kinds for damaged bytes
        raise DataError("is no readable DICOM file", file=path, remedy="export it again") from error


def read_planes(path: Path, geometry: Geometry, *, series: str | None = None) -> tuple[SourcePlane, ...]:
    """The slices of a series that make up a volume, in the order of its last axis.

    Args:
        path: folder of the series, or a multi-frame file.
        geometry: of the volume ``(columns, rows, slices)`` as `read_volume` gives it.
        series: which one, where the folder holds several: `ReadRecord.series`.

    Raises:
        DataError: no series, or several, on this grid; one without study or frame of reference.
        GeometryError: the volume is not on the grid of any series there.
    """
    found: dict[str, list[SourcePlane]] = defaultdict(list)
    for file in sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]:
        try:
            with file.open("rb") as stream:
                refuse_deflate_bomb(stream, file)
                header = pydicom.dcmread(stream, stop_before_pixels=True)
        except SecurityError:
            raise
        except Exception:  # as above; the reader has said what is wrong with it
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        if "Rows" in header and (not series or hashlib.sha256(uid.encode()).hexdigest().startswith(series)):
            found[uid] += _planes(header)
    if not found:
        raise DataError("no DICOM image", file=path, remedy="give the folder of the series")
    fitting = [ordered for planes in found.values() if (ordered := _in_order(planes, geometry))]
    if not fitting:
        raise GeometryError(
            "the result does not lie on the grid of the DICOM series",
            file=path,
            received=f"{geometry.shape[-1]} slices",
            expected="one slice of the series for each slice of the result",
            remedy="write .nii.gz or .seg.nrrd",
        )
    if len(fitting) > 1:
        raise DataError("several series lie on this grid", file=path, remedy="choose one by `series_uid`")
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID"):
        if not fitting[0][0].header.get(name):
            raise DataError(f"series lacks {name}", file=path, remedy="write .nii.gz or .seg.nrrd")
    return fitting[0]


def copy_values(source: Dataset, target: Dataset, names: Sequence[str]) -> None:
    """Copy texts as they are, empty ones for what the source lacks: scanners break the rules of length too."""
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
"""What makes an object part of the patient's study; more of the patient goes into no result."""

_TECHNICAL = ("SpecificCharacterSet", "PositionReferenceIndicator")
_TELLING_VRS = {"AS", "DA", "DT", "LO", "LT", "PN", "SH", "SQ", "ST", "TM", "UC", "UT"}
"""Texts, dates and sequences: what can tell of a person."""


def keep_only_links(made: Dataset, source: Dataset) -> None:
    """Remove what was copied from the source and tells more of the patient than which study it is.

    ReferringPhysicianName must be there by the standard, but may be empty.
    """
    kept = {*LINKS, *_TECHNICAL}
    for element in [element for element in made if element.VR in _TELLING_VRS and element.keyword not in kept]:
        if element.tag in source and source[element.tag].value == element.value:
            del made[element.tag]
    made.ReferringPhysicianName = ""


def save_dataset(dataset: Dataset, path: Path, *, implicit: bool = False) -> None:
    """Write a whole DICOM file, little endian, with pydicom 2 or 3.

    Args:
        dataset: with SOPClassUID and SOPInstanceUID.
        path: of the file.
        implicit: leave types out of the file: only so can a value have more than 64 kB.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    file = FileDataset(str(path), dataset, file_meta=meta, preamble=bytes(_PREAMBLE))
    if _NEW_WRITER:
        file.save_as(path, enforce_file_format=True)
    else:
        file.is_little_endian, file.is_implicit_VR = True, implicit
        file.save_as(path, write_like_original=False)


def plane_geometry(header: Dataset, frame: Dataset | None = None, shared: Dataset | None = None) -> Geometry | None:
    """Grid ``(columns, rows, 1)`` of a slice, or None where it has no placement; its third axis is 1 mm long.

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
    """Shared and per-frame functional groups of a multi-frame file."""
    shared = header.get("SharedFunctionalGroupsSequence")
    return (shared[0] if shared else None), list(header.get("PerFrameFunctionalGroupsSequence") or ())


def _planes(header: Dataset) -> list[SourcePlane]:
    shared, frames = frame_groups(header)
    if int(header.get("NumberOfFrames") or 1) == 1 and not frames:
        grids: list[tuple[int | None, Geometry | None]] = [(None, plane_geometry(header))]
    else:
        grids = [(n, plane_geometry(header, frame, shared)) for n, frame in enumerate(frames, start=1)]
    return [SourcePlane(header, number, grid) for number, grid in grids if grid is not None]


def _in_order(planes: list[SourcePlane], geometry: Geometry) -> tuple[SourcePlane, ...]:
    """One plane for each slice of the volume, or nothing."""
    if len(geometry.shape) != 3:
        return ()
    inverse = np.linalg.inv(geometry.affine)
    slices: dict[int, SourcePlane] = {}
    for plane in planes:
        if plane.geometry.shape[:2] != geometry.shape[:2]:
            return ()
        first, last = (0, 0, 0, 1), (*(n - 1 for n in geometry.shape[:2]), 0, 1)
        begin, end = ((inverse @ plane.geometry.affine @ corner)[:3] for corner in (first, last))
        index = round(float(begin[2]))
        away = max(np.abs(begin - (0, 0, index)).max(), np.abs(end - (*last[:2], index)).max())
        if away > LATTICE_TOLERANCE_VOXELS or not 0 <= index < geometry.shape[2]:
            return ()
        slices.setdefault(index, plane)  # a second image of one place is a duplicate, which the reader has judged
    if len(slices) != geometry.shape[2]:
        return ()
    return tuple(slices[index] for index in range(geometry.shape[2]))
