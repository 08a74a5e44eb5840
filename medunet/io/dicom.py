"""DICOM as a volume: a folder of slices, a multi-frame file, a DICOMDIR, or one slice as an image in the plane.

The headers are verified by our own rules before a pixel is used (`dicom_grid`), and the pixels are rescaled by the
slope of each slice (`dicom_pixels`). All else is refused with the cause; nothing is guessed, merged or stretched.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import numpy.typing as npt
from pydicom.filereader import read_dataset, read_file_meta_info

from medunet.errors import DataError, SecurityError

from .dicom_codec import same_pixels
from .dicom_grid import GAP_TOLERANCE_MM as GAP_TOLERANCE_MM
from .dicom_grid import Grid, build_grid
from .dicom_header import DICOM_SUFFIXES as DICOM_SUFFIXES
from .dicom_header import DIRECTORY_CLASS, Frame, looks_like_dicom, read_frames
from .dicom_mosaic import split_mosaic
from .dicom_pixels import check_pixels, read_voxels
from .dicom_resample import resample
from .dicom_values import items, text
from .options import DEFAULTS, ReadOptions
from .record import ReadRecord, SourceFrame

_META_START = 132 + 12
"""Preamble, magic word and the element that gives the length of the rest of the file meta information."""

_HASH_DIGITS = 12
"""Digits of the series' hash in a record: enough to tell the series of one hospital apart."""


def is_dicom_folder(path: Path) -> bool:
    """Whether a folder directly holds at least one DICOM file."""
    return path.is_dir() and any(looks_like_dicom(file) for file in sorted(path.iterdir()) if file.is_file())


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM by its name or by its first bytes."""
    return path.is_file() and (path.suffix.lower() in DICOM_SUFFIXES or looks_like_dicom(path))


def read_dicom(path: Path, options: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read one series.

    Args:
        path: a folder (its subfolders are not searched), a file, or a DICOMDIR, whose images are taken.
        options: `series_uid`, `uneven`, `tilt`, `phase` and `spatial_dims` are used.

    Returns:
        Rescaled voxels ``(columns, rows, slices)``, in the plane ``(columns, rows)``, and the record in RAS.

    Raises:
        DataError: no images, several series or phases, colour, an impossible slope, truncated pixels, no codec.
        GeometryError: a grid that is incomplete, uneven, mixed or impossible.
        SecurityError: a DICOMDIR that points out of its folder.
    """
    grid, record = _verified(path, options)
    voxels, warnings = read_voxels(grid.frames)
    record = replace(record, warnings=(*record.warnings, *warnings))
    if len(record.geometry.shape) == 2:
        return voxels[..., 0], record
    return resample(voxels, grid), record


def read_dicom_header(path: Path, options: ReadOptions = DEFAULTS) -> ReadRecord:
    """The record alone; raises as `read_dicom` but for damage inside compressed pixels, and does not know padding."""
    return _verified(path, options)[1]


def _verified(path: Path, options: ReadOptions) -> tuple[Grid, ReadRecord]:
    frames, warnings = _find_series(path, options.series_uid)
    warnings += check_pixels(frames, path)
    planar = options.spatial_dims == 2 or (options.spatial_dims is None and path.is_file() and len(frames) == 1)
    grid = build_grid(frames, path, options=options, planar=planar, same_pixels=same_pixels)
    first = grid.frames[0].file
    is_resampled = grid.interpolate or grid.shifts is not None
    record = ReadRecord(
        path=path,
        format="dicom",
        geometry=grid.geometry,
        dtype=f"{'int' if first.is_signed else 'uint'}{first.bits_allocated}",
        warnings=(*warnings, *grid.warnings),
        files=len({frame.file.path for frame in grid.frames}),
        modality=first.modality,
        series=hashlib.sha256(first.series_uid.encode()).hexdigest()[:_HASH_DIGITS],
        frames=()
        if is_resampled
        else tuple(SourceFrame(frame.file.path, 0 if frame.file.is_mosaic else frame.index) for frame in grid.frames),
    )
    return grid, record


def _find_series(path: Path, series_uid: str | None) -> tuple[list[Frame], list[str]]:
    """The frames of the one series that is there, or of the chosen one."""
    series: dict[str, list[Frame]] = defaultdict(list)
    ignored: Counter[str] = Counter()
    for file in _files(path, ignored):
        frames = read_frames(file)
        if frames is None:
            ignored["files without an image ignored"] += 1
        elif frames[0].file.is_localizer:
            ignored["localizers dropped"] += 1
        else:
            series[frames[0].file.series_uid] += split_mosaic(frames[0]) if frames[0].file.is_mosaic else frames
    if not series:
        what = "no DICOM image" if not ignored["localizers dropped"] else "localizers only"
        raise DataError(
            f"folder holds {what}" if path.is_dir() else f"file holds {what}",
            file=path,
            remedy="give the folder that holds the slices",
        )
    if series_uid is None and len(series) > 1:
        raise DataError(
            "folder holds several series", file=path, received=_listed(series), remedy="choose one by `series_uid`"
        )
    if series_uid is not None and series_uid not in series:
        raise DataError("folder does not hold this series", file=path, received=series_uid, expected=_listed(series))
    warnings = [f"{count} {what}" for what, count in sorted(ignored.items())]
    return series[next(iter(series)) if series_uid is None else series_uid], warnings


def _listed(series: dict[str, list[Frame]]) -> str:
    return ", ".join(f"{uid} ({f[0].file.modality}, {len(f)} images)" for uid, f in sorted(series.items()))


def _files(path: Path, ignored: Counter[str]) -> list[Path]:
    """The files to look at. A DICOMDIR in a folder is checked and ignored; one that was asked for is followed."""
    if not path.exists():
        raise DataError("does not exist", file=path)
    if path.is_file():
        referenced = _referenced_files(path)
        absent = [file for file in referenced or () if not file.is_file()]
        if absent:
            raise DataError("DICOMDIR names a missing file", file=path, received=absent[0].name)
        return [path] if referenced is None else referenced
    files = []
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        try:
            is_directory = _referenced_files(file) is not None
        except DataError:  # damaged: ignored like a healthy one
            is_directory = True
        if is_directory:
            ignored["DICOMDIR ignored"] += 1
        else:
            files.append(file)
    return files


def _referenced_files(path: Path) -> list[Path] | None:
    """The files that a DICOMDIR names, or None for another file.

    Raises:
        SecurityError: one lies outside the DICOMDIR's folder.
        DataError: the directory is damaged.
    """
    if path.name.upper() != "DICOMDIR" or not looks_like_dicom(path):
        return None
    try:
        meta = read_file_meta_info(path)
        if meta.get("MediaStorageSOPClassUID") != DIRECTORY_CLASS:
            return None
        with path.open("rb") as stream:  # not by dcmread: pydicom 2 would make its own object, and warn
            stream.seek(_META_START + int(meta.FileMetaInformationGroupLength))
            directory = read_dataset(stream, is_implicit_VR=False, is_little_endian=True)  # as PS3.10 prescribes
        names = [text(record, "ReferencedFileID") for record in items(directory, "DirectoryRecordSequence")]
    except Exception as error:  # pydicom raises many kinds for damaged bytes
        raise DataError("damaged DICOMDIR", file=path, remedy="give the folder of the series") from error
    root = path.parent.resolve()
    files = []
    for name in names:
        if not name:
            continue
        parts = name.split("\\")
        if any(_leaves_folder(part) for part in parts):
            raise SecurityError("DICOMDIR points out of its folder", file=path, received=parts, remedy="do not use it")
        file = path.parent.joinpath(*parts)
        if not file.resolve().is_relative_to(root):  # a symbolic link
            raise SecurityError("DICOMDIR points out of its folder", file=path, received=parts, remedy="do not use it")
        files.append(file)
    return files


def _leaves_folder(part: str) -> bool:
    """Whether a component of a file name is absolute, climbs, or hides several components."""
    return part in ("", ".", "..") or any(len(kind(part).parts) != 1 or kind(part).anchor for kind in _PATH_KINDS)


_PATH_KINDS = (PurePosixPath, PureWindowsPath)
