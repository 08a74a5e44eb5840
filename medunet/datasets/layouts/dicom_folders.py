"""Data sets with one folder of DICOM files per case: image series, and a SEG or RTSTRUCT beside or among them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from medunet.errors import DataError, MedunetError
from medunet.io.dicom.references import RTSTRUCT_CLASS, SEG_CLASSES, read_dataset

from .dataset import Case, collect

# with the classes below them: radiographs, CT, ultrasound, MR, secondary capture, angiography, nuclear medicine,
# microscopy and photographs, PET
_IMAGE_ENDS = ("1", "2", "3", "4", "6", "7", "12", "20", "77.1", "128", "130")
IMAGE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in _IMAGE_ENDS)
MAX_DEPTH = 4  # levels of folders below a case: CASE/study/series/files is common, more is another archive


def dicom_cases(root: Path, problems: list[MedunetError] | None = None) -> tuple[Case, ...]:
    """Return the cases of a DICOM data set, each named after its folder, because names never come from a header.

    ``root/CASE/**`` has one SEG or RTSTRUCT and the series that it refers to; other series are ignored. `problems`
    collects errors about single cases instead of raising them.
    """
    cases = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        structures: list[Path] = []
        series: dict[Path, Path] = {}  # folder of images to one of its files
        for path in _files(folder, MAX_DEPTH):
            kind = _storage_class(path)
            if kind in (*SEG_CLASSES, RTSTRUCT_CLASS):
                structures.append(path)
            elif _is_image(kind):
                series.setdefault(path.parent, path)
        if not series and not structures:
            continue
        with collect(problems):
            cases.append(_pair(folder, structures, series))
    return tuple(cases)


def patient_of(image: Path) -> str:
    """Return the PatientID of a DICOM file, or of the first file in a folder; empty if it is missing. Never log it."""
    for path in _files(image, 0) if image.is_dir() else [image]:
        if _is_image(_storage_class(path)):
            return str(read_dataset(path, tags=["PatientID"]).get("PatientID") or "")
    return ""


def _pair(folder: Path, structures: Sequence[Path], series: dict[Path, Path]) -> Case:
    if not structures:
        raise DataError("case has no label", file=folder, expected="a DICOM SEG or RTSTRUCT")
    if not series:
        raise DataError("case has no image", file=folder, expected="the series that the label was drawn on")
    images = {structure: _drawn_on(structure, series, folder) for structure in structures}
    if len(set(images.values())) > 1:
        received = ", ".join(str(path.relative_to(folder)) for path in dict.fromkeys(images.values()))
        remedy = "make one case per series"
        raise DataError("case has several labelled series", file=folder, received=received, remedy=remedy)
    if len(structures) > 1:
        received = ", ".join(str(path.relative_to(folder)) for path in structures)
        raise DataError("case has several labels of one series", file=folder, received=received)
    return Case(folder.name, (images[structures[0]],), structures[0])


def _drawn_on(structure: Path, series: dict[Path, Path], folder: Path) -> Path:
    """Return the folder of images that a label refers to, or the only one."""
    wanted = _referenced_series(structure)
    for images, example in series.items():
        if str(read_dataset(example, tags=["SeriesInstanceUID"]).get("SeriesInstanceUID", "")) in wanted:
            return images
    if len(series) == 1:
        return next(iter(series))  # its grid is compared when it is read
    received = f"{len(series)} series in {folder.name}"
    raise DataError("label must refer to a series of its case", file=structure, received=received)


def _storage_class(path: Path) -> str:
    """Return the SOP class of a DICOM file; empty for any other file."""
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
    header = read_dataset(structure, tags=["ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"])
    series = list(header.get("ReferencedSeriesSequence") or ())
    for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            series += study.get("RTReferencedSeriesSequence") or ()
    return {str(uid) for item in series if (uid := item.get("SeriesInstanceUID"))}
