"""A folder with one subfolder of DICOM files a case: image series and, beside or among them, a SEG or RTSTRUCT."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from medunet.errors import DataError, MedunetError
from medunet.io.limits import refuse_deflate_bomb

from .dataset import Case

STRUCTURE_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.481.3",  # RT Structure Set
    }
)
"""SOP classes whose objects hold labels."""

IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # radiographs
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.3",  # ultrasound, multi-frame
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.6",  # ultrasound
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
    "1.2.840.10008.5.1.4.1.1.12",  # angiography
    "1.2.840.10008.5.1.4.1.1.20",  # nuclear medicine
    "1.2.840.10008.5.1.4.1.1.77.1",  # microscopy, photographs
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.130",  # PET, enhanced
)
"""SOP classes of images, with what is derived from them by a dot."""

MAX_DEPTH = 4
"""Levels of folders below a case: CASE/study/series/files is common, more is another archive."""

_REFERENCE_TAGS = ("SeriesInstanceUID", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")


@dataclass
class _Found:
    """What lies in the folder of one case."""

    structures: list[Path] = field(default_factory=list)
    images: dict[Path, Path] = field(default_factory=dict)
    """Folder of images to one file of it."""


def dicom_cases(root: Path, problems: list[MedunetError] | None = None) -> tuple[Case, ...]:
    """Cases of a DICOM data set, each named as its folder: nothing from a header becomes a name.

    ``root/CASE/**`` holds one image series in a folder of its own, or with the label among the slices, and one SEG or
    RTSTRUCT that refers to it. Other series in the case are passed over.

    Args:
        root: folder of the data set.
        problems: collects what is wrong with single cases instead of raising it.

    Returns:
        Empty where no subfolder holds DICOM files.

    Raises:
        DataError: a case without label or without image, or with several labels or labelled series.
    """
    cases = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = _find(folder)
        if not found.images and not found.structures:
            continue
        try:
            cases.append(_pair(folder, found))
        except MedunetError as error:
            if problems is None:
                raise
            problems.append(error)
    return tuple(cases)


def patient_of(image: Path) -> str:
    """Return the PatientID of a DICOM file, or of the first file in a folder; empty if it is missing. Never log it.

    Raises:
        MedunetError: a damaged header.
    """
    for path in _files(image, 0) if image.is_dir() else [image]:
        if _is_image(_storage_class(path)):
            return str(_header(path, ("PatientID",)).get("PatientID") or "")
    return ""


def _pair(folder: Path, found: _Found) -> Case:
    if not found.structures:
        raise DataError(
            "case has no label", file=folder, expected="a DICOM SEG or RTSTRUCT", remedy="add it, or remove the case"
        )
    if not found.images:
        raise DataError("case has no image", file=folder, remedy="add the series that the label was drawn on")
    by_images: dict[Path, list[Path]] = {}
    for structure in found.structures:
        by_images.setdefault(_drawn_on(structure, found, folder), []).append(structure)
    if len(by_images) > 1:
        raise DataError(
            "case has several labelled series",
            file=folder,
            received=", ".join(str(path.relative_to(folder)) for path in by_images),
            remedy="make a case of each, in a folder of its own",
        )
    ((images, structures),) = by_images.items()
    if len(structures) > 1:
        raise DataError(
            "case has several labels of one series",
            file=folder,
            received=", ".join(str(path.relative_to(folder)) for path in structures),
            remedy="keep one of them",
        )
    return Case(folder.name, (images,), structures[0])


def _drawn_on(structure: Path, found: _Found, folder: Path) -> Path:
    """The folder of images that a label refers to; the only one where its references lead nowhere."""
    wanted = _referenced_series(structure)
    for images, example in found.images.items():
        if _series_uid(example) in wanted:
            return images
    if len(found.images) == 1:
        return next(iter(found.images))  # its grid is compared when it is read
    raise DataError(
        "label refers to no series of its case",
        file=structure,
        received=f"{len(found.images)} series in {folder.name}",
        remedy="keep the series that it was drawn on",
    )


def _find(folder: Path) -> _Found:
    found = _Found()
    for path in _files(folder, MAX_DEPTH):
        kind = _storage_class(path)
        if kind in STRUCTURE_CLASSES:
            found.structures.append(path)
        elif _is_image(kind):
            found.images.setdefault(path.parent, path)
    return found


def _storage_class(path: Path) -> str:
    """SOP class of a DICOM file; empty for any other file."""
    try:
        return str(read_file_meta_info(path).get("MediaStorageSOPClassUID", ""))
    except (InvalidDicomError, OSError, EOFError, ValueError, AttributeError, KeyError):
        return ""


def _is_image(kind: str) -> bool:
    return any(kind == uid or kind.startswith(uid + ".") for uid in IMAGE_CLASSES)


def _files(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield Path(entry.path)
        elif depth > 0 and entry.is_dir():
            yield from _files(Path(entry.path), depth - 1)


def _referenced_series(structure: Path) -> set[str]:
    header = _header(structure)
    series = [item.get("SeriesInstanceUID") for item in header.get("ReferencedSeriesSequence") or ()]
    for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            series += [item.get("SeriesInstanceUID") for item in study.get("RTReferencedSeriesSequence") or ()]
    return {str(uid) for uid in series if uid}


def _series_uid(path: Path) -> str:
    return str(_header(path).get("SeriesInstanceUID", ""))


def _header(path: Path, tags: Sequence[str] = _REFERENCE_TAGS) -> pydicom.Dataset:
    try:
        with path.open("rb") as file:
            refuse_deflate_bomb(file, path)
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except MedunetError:
        raise
    except Exception as error:  # pydicom raises many kinds for damaged bytes
        raise DataError(f"damaged DICOM header: {type(error).__name__}", file=path) from error
