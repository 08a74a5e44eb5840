"""DICOM as a volume: a folder of slices, a multi-frame file, a DICOMDIR, or one slice as a 2D image."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import UID

from medunet.errors import DataError, SecurityError
from medunet.io.limits import system_errors
from medunet.io.options import DEFAULTS, ReadOptions
from medunet.io.record import ReadRecord, SourceFrame

from .codec import read_colour
from .grid import Grid, are_pictures, build_grid, build_picture, resample
from .header import DICOM_SUFFIXES, DIRECTORY_CLASS, PALETTE, Frame, ImageFile, looks_like_dicom, read_frames
from .pixels import check_pixels, read_voxels
from .placement import place_slices, split_mosaic
from .references import RTSTRUCT_CLASS, SEG_CLASSES, storage_class
from .tags import IDENTITY, items, text, typed_errors

_META_START = 132 + 12  # preamble, magic word and the element with the length of the rest of the meta information
_DIRECTORY = "DICOMDIR"
_HASH_DIGITS = 12  # of the series' hash in a record: enough to distinguish the series of one hospital


def is_dicom_folder(path: Path) -> bool:
    """Return whether a folder directly contains a DICOM file."""
    with system_errors(path):
        return path.is_dir() and any(looks_like_dicom(file) for file in sorted(path.iterdir()) if file.is_file())


def is_dicom_file(path: Path) -> bool:
    """Return whether a file is DICOM by its name or by its first bytes."""
    return path.is_file() and (path.suffix.lower() in DICOM_SUFFIXES or looks_like_dicom(path))


def is_dicom(path: Path) -> bool:
    """Return whether a path is one DICOM image by itself: a file other than a DICOMDIR, or a folder with slices."""
    return is_dicom_folder(path) or (is_dicom_file(path) and path.name.upper() != _DIRECTORY)


def picture_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder if each is a 2D image, such as a radiograph, else none.

    The first image decides: slices of a series have a position in the patient, but radiographs have none.
    """
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_dicom_file(path)]
    first = next((frames for path in files if (frames := read_frames(path))), None)
    return [path for path in files if is_dicom(path)] if first is not None and are_pictures(first) else []


def read_dicom(path: Path, options: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read one series, or one 2D image.

    Args:
        path: a folder (its subfolders are not searched), a file, or a DICOMDIR, whose images are read.
        options: `series_uid`, `uneven`, `tilt`, `phase`, `spatial_dims` and `skip_unreadable` are used.

    Returns:
        Rescaled voxels ``(columns, rows, slices)``, or ``(columns, rows)`` in 2D, and the record in RAS.

    Raises:
        DataError: no images, several series or phases, colour, an impossible slope, truncated pixels, no codec.
        GeometryError: a grid that is incomplete, uneven, mixed or impossible.
        SecurityError: a DICOMDIR that points outside its folder.
    """
    grid, record = _verified(path, options)
    if record.channels > 1:
        return read_colour(grid.frames[0]), record
    voxels, warnings = read_voxels(grid.frames)
    record = replace(record, warnings=(*record.warnings, *warnings))
    return voxels[..., 0] if len(record.geometry.shape) == 2 else resample(voxels, grid), record


def read_dicom_header(path: Path, options: ReadOptions = DEFAULTS) -> ReadRecord:
    """Return the record alone; raises as `read_dicom` except for damaged compressed pixels and padding."""
    return _verified(path, options)[1]


def _verified(path: Path, options: ReadOptions) -> tuple[Grid, ReadRecord]:
    frames, warnings = _find_series(path, options)
    is_picture = are_pictures(frames)
    is_single = path.is_file() and (is_picture or len(frames) == 1)
    planar = options.spatial_dims == 2 or (options.spatial_dims is None and is_single)
    warnings += check_pixels(frames, colour=planar)
    if planar and is_picture:
        grid = build_picture(frames, path, options.phase)
    else:
        grid = build_grid(frames, path, options, planar=planar)
    is_resampled = grid.places is not None or grid.corners is not None
    first = grid.frames[0].file
    # the index of a mosaic's frame counts tiles
    frames_read = [SourceFrame(one.file.path, 0 if one.file.is_mosaic else one.index) for one in grid.frames]
    integer = f"{'int' if first.is_signed else 'uint'}{first.bits_allocated}"
    record = ReadRecord(
        path=path,
        format="dicom-picture" if planar and is_picture else "dicom",
        geometry=grid.geometry,
        channels=3 if first.is_colour else 1,
        dtype="uint16" if first.photometric == PALETTE else integer,
        warnings=(*warnings, *grid.warnings),
        files=len({frame.file.path for frame in grid.frames}),
        modality=first.modality,
        series=hashlib.sha256(first.series_uid.encode()).hexdigest()[:_HASH_DIGITS],
        frames=() if is_resampled else tuple(frames_read),
    )
    return grid, record


def _find_series(path: Path, options: ReadOptions) -> tuple[list[Frame], list[str]]:
    """Return the frames of the only series, or of the chosen one, and warnings."""
    series: dict[str, list[Frame]] = defaultdict(list)
    ignored: Counter[str] = Counter()
    files = _files(path, ignored)
    for file in files:
        try:
            frames = read_frames(file)
        except DataError as error:
            if path == file:
                raise
            if not options.skip_unreadable:
                values = {"received": error.received, "expected": error.expected}
                raise DataError(error.cause, file=file, remedy="pass --skip-unreadable", **values) from error
            ignored[f"unreadable files skipped: {error.cause}"] += 1  # file names may be patients' names
            continue
        if frames is None:
            ignored["files without an image ignored"] += 1
        elif frames[0].file.is_localizer:
            ignored["localizers dropped"] += 1
        else:
            series[frames[0].file.series_uid] += _placed(frames)
    if not series:
        raise _without_image(path, files, ignored)
    uid = next(iter(series)) if options.series_uid is None else options.series_uid
    listed = ", ".join(f"{one} ({f[0].file.modality}, {len(f)} images)" for one, f in sorted(series.items()))
    if options.series_uid is None and len(series) > 1:
        remedy = f"choose one, such as --series-uid {min(series)}"
        raise DataError("folder contains several series", file=path, received=listed, remedy=remedy)
    if uid not in series:
        raise DataError("folder does not contain this series", file=path, received=uid, expected=listed)
    _require_one_identity(series[uid])
    return series[uid], [f"{count} {what}" for what, count in sorted(ignored.items())]


def _without_image(path: Path, files: Sequence[Path], ignored: Counter[str]) -> DataError:
    """Return the error for a path without an image, which names what it contains instead."""
    what = "folder" if path.is_dir() else "file"
    if ignored["localizers dropped"]:
        return DataError(f"{what} contains only localizers", file=path)
    classes = {kind for file in files if (kind := storage_class(file))}
    names = ", ".join(sorted(UID(kind).name.removesuffix(" Storage") for kind in classes))
    is_label = bool(classes & {*SEG_CLASSES, RTSTRUCT_CLASS})
    remedy = "read it as a label of its image: medunet.io.read_label" if is_label else None
    return DataError(f"{what} has no DICOM image" + f" but {names}" * bool(names), file=path, remedy=remedy)


def _require_one_identity(frames: Sequence[Frame]) -> None:
    """Reject a series of several patients, studies or frames of reference, without quoting the values."""
    for keyword, what in IDENTITY.items():
        first: ImageFile | None = None
        for file in (frame.file for frame in frames if frame.file.identity.get(keyword)):
            first = first or file
            if file.identity[keyword] != first.identity[keyword]:
                received = f"another {keyword} than {first.path.name}"
                raise DataError(f"slices of several {what} in one series", file=file.path, received=received)


def _placed(frames: list[Frame]) -> list[Frame]:
    """Return the slices of a file that does not place them frame by frame; other frames as they are."""
    file = frames[0].file
    if file.is_mosaic:
        return split_mosaic(frames[0])
    is_reconstruction = file.modality == "NM" and file.n_frames > 1 and are_pictures(frames)
    return place_slices(frames) if is_reconstruction else frames


def _files(path: Path, ignored: Counter[str]) -> list[Path]:
    """Return the files to read. A DICOMDIR in a folder is checked and ignored; as the path itself it is followed."""
    if path.is_file():
        referenced = _referenced_files(path)
        absent = [file for file in referenced or () if not file.is_file()]
        if absent:
            raise DataError("DICOMDIR names a missing file", file=path, received=absent[0].name)
        return [path] if referenced is None else referenced
    files = []
    with system_errors(path):  # a link to nothing is a slice that git-annex has not fetched
        present = sorted(file for file in path.iterdir() if file.is_file() or (file.is_symlink() and not file.exists()))
    for file in present:
        try:
            is_directory = _referenced_files(file) is not None
        except DataError:  # damaged: ignored like a valid one
            is_directory = True
        if is_directory:
            ignored["DICOMDIR ignored"] += 1
        else:
            files.append(file)
    return files


def _referenced_files(path: Path) -> list[Path] | None:
    """Return the files that a DICOMDIR names, or None for another file; one outside its folder is a SecurityError."""
    if path.name.upper() != _DIRECTORY or not looks_like_dicom(path):
        return None
    with typed_errors("damaged DICOMDIR", path):
        meta = read_file_meta_info(path)
        if meta.get("MediaStorageSOPClassUID") != DIRECTORY_CLASS:
            return None
        with path.open("rb") as stream:  # not by dcmread: pydicom 2 would make another object of it, and warn
            stream.seek(_META_START + int(meta.FileMetaInformationGroupLength))
            directory = read_dataset(stream, is_implicit_VR=False, is_little_endian=True)  # as PS3.10 prescribes
        names = [text(record, "ReferencedFileID") for record in items(directory, "DirectoryRecordSequence")]
        files = [path.parent.joinpath(*name.split("\\")) for name in names if name]
        outside = [file for file in files if not file.resolve().is_relative_to(path.parent.resolve())]
    if outside:
        raise SecurityError("DICOMDIR points outside its folder", file=path, received=str(outside[0]))
    return files
