"""Decoding one file or series by the reader of its format, without torch and MONAI: a child process does it, too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medunet.errors import DataError

from .dicom.header import DICOM_SUFFIXES, looks_like_dicom
from .dicom.series import is_dicom_file, read_dicom, read_dicom_header
from .dicom.zipped import ZIP_SUFFIX, image_in, unpacked
from .images import PILLOW_SUFFIXES, TIFF_SUFFIXES, read_pillow, read_pillow_header, read_tiff, read_tiff_header
from .itk import ITK_SUFFIXES, read_itk, read_itk_header
from .nifti import NIFTI_SUFFIXES, RELATED_SUFFIXES, read_nifti, read_nifti_header
from .options import ReadOptions
from .record import ReadRecord, SourceFrame

# Suffixes of the files that can be read, in lower case. DICOM has no reliable one: a folder is read as a series, and a
# file with another suffix is read as DICOM if it has its magic word.
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *RELATED_SUFFIXES, *PILLOW_SUFFIXES, *TIFF_SUFFIXES, *ITK_SUFFIXES, ZIP_SUFFIX)

_DICOM = ".dcm"

Voxels = npt.NDArray[np.float32]


def read_one(path: Path, options: ReadOptions) -> tuple[Voxels, ReadRecord]:
    """Read one file or series in this process, by the reader of its format."""
    suffix = suffix_of(path)
    read, _ = _reader(suffix)
    if suffix != ZIP_SUFFIX:
        return read(path, options)
    with unpacked(path) as inside:
        voxels, record = read(image_in(inside), options)
    return voxels, _within(record, path)


def read_one_header(path: Path, options: ReadOptions) -> ReadRecord:
    """Return the record of one file or series, in this process."""
    suffix = suffix_of(path)
    _, read = _reader(suffix)
    if suffix != ZIP_SUFFIX:
        return read(path, options)
    with unpacked(path) as inside:
        return _within(read(image_in(inside), options), path)


def _reader(suffix: str | None) -> tuple[Callable[..., tuple[Voxels, ReadRecord]], Callable[..., ReadRecord]]:
    """Return the functions that read a file and its header."""
    if suffix in (_DICOM, ZIP_SUFFIX):
        return read_dicom, read_dicom_header
    if suffix in PILLOW_SUFFIXES:
        return read_pillow, read_pillow_header
    if suffix in TIFF_SUFFIXES:
        return read_tiff, read_tiff_header
    return (read_itk, read_itk_header) if suffix in ITK_SUFFIXES else (read_nifti, read_nifti_header)


def _within(record: ReadRecord, archive: Path) -> ReadRecord:
    """Return a record that names files within their archive, because the unpacked files are removed."""
    frames = tuple(SourceFrame(archive / frame.file.name, frame.number) for frame in record.frames)
    return replace(record, path=archive, frames=frames)


def suffix_of(path: Path, *, strict: bool = True) -> str | None:
    """Return the suffix that chooses the reader; '.dcm' for all DICOM."""
    name = path.name.lower()
    for suffix in IMAGE_SUFFIXES:
        if name.endswith(suffix) and not path.is_dir():
            if strict and looks_like_dicom(path):
                raise DataError(f"is a DICOM file with the ending {suffix}", file=path, remedy="rename it to .dcm")
            return suffix
    if path.is_dir() or name.endswith(DICOM_SUFFIXES) or is_dicom_file(path):
        return _DICOM
    if strict:
        raise DataError("unknown format", file=path, expected=", ".join((*IMAGE_SUFFIXES, *DICOM_SUFFIXES)))
    return None
