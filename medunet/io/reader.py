"""One door for all formats: `read_volume` for people, `MedunetReader` for MONAI's `LoadImaged`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .dicom.header import looks_like_dicom
from .dicom.series import DICOM_SUFFIXES, is_dicom_file, read_dicom, read_dicom_header
from .dicom.zipped import ZIP_SUFFIX, image_in, unpacked
from .images import (
    PILLOW_SUFFIXES,
    TIFF_SUFFIXES,
    read_pillow,
    read_pillow_header,
    read_tiff,
    read_tiff_header,
)
from .isolation import is_wanted, shared_process
from .itk import ITK_SUFFIXES, read_itk, read_itk_header
from .limits import require_reachable
from .names import output_name
from .nifti import NIFTI_SUFFIXES, RELATED_SUFFIXES, read_nifti, read_nifti_header
from .options import Form, ReadOptions, Tilt, Uneven
from .record import ReadRecord, SourceFrame, encode_frames

IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *RELATED_SUFFIXES, *PILLOW_SUFFIXES, *TIFF_SUFFIXES, *ITK_SUFFIXES, ZIP_SUFFIX)
"""Endings of the files that can be read, in lower case. DICOM has none that can be relied on: a folder is taken for a
series, and a file with another ending is read as DICOM where it has its magic word."""

PathLike = str | os.PathLike[str]


class Volume(NamedTuple):
    """Voxels ``(C, *spatial)`` float32 with the affine in RAS mm, and what was read."""

    image: MetaTensor
    record: ReadRecord


def read_volume(
    path: PathLike | Sequence[PathLike],
    *,
    channels: int | None = None,
    form: Form = "agree",
    fill_value: float | None = None,
    series_uid: str | None = None,
    uneven: Uneven = "refuse",
    tilt: Tilt = "keep",
    phase: int | None = None,
    spatial_dims: int | None = None,
    skip_unreadable: bool = False,
    isolated: bool | None = None,
) -> Volume:
    """Read an image in the plane or a volume.

    Args:
        path: a file, a folder or a ZIP archive with a DICOM series, or several of these as channels of one grid.
        channels: number of channels that a NIfTI file with a fourth axis must have; without it such files are refused.
        form: all but DICOM: which placement of the header to use, see `medunet.io.options.Form`.
        fill_value: NIfTI: replaces NaN and infinite voxels, which are refused otherwise.
        series_uid: DICOM: which series to read where there are several.
        uneven: DICOM: 'refuse' slices at uneven distances or 'resample' them; a missing slice is always refused.
        tilt: DICOM: 'keep' a tilted gantry as shear in the affine, or 'resample' to a grid with right angles.
        phase: DICOM: which volume of a series of several, or which frame without a position, counted from 0; None
            rejects such a series.
        spatial_dims: 3 refuses an image in the plane, and a volume of one slice; 2 refuses volumes, and reads one slice
            as an image in the plane. None takes what is there, but refuses a DICOM folder with a single slice.
        skip_unreadable: DICOM: leave out zeroed, truncated and unreadable files, with a warning; False rejects them.
        isolated: decode in a child process with limits of memory and time, see `medunet.io.isolation`; by default where
            the environment says so (`MEDUNET_ISOLATE=1`).

    Returns:
        ``Volume(image, record)``: NIfTI, NRRD, MetaImage and DICOM in the order ``(C, x, y, z)`` of their affine, a
        DICOM file with one slice or a radiograph as ``(C, x, y)``; PNG, TIFF, BMP and JPEG as ``(C, x, y)``, x along
        the width and y along the height as MONAI's readers give them, a TIFF stack as ``(C, x, y, pages)``.

    Raises:
        DataError: unreadable, damaged, unknown format, NaN voxels, an axis, a series or a phase that must be chosen.
        GeometryError: a placement that is missing, impossible, contradictory, or differs between channels.
        SecurityError: a DICOMDIR or an archive that points out of its folder, or unpacks to too much.
        ConfigError: an option that does not exist.
    """
    options = ReadOptions(channels, form, fill_value, series_uid, uneven, tilt, phase, spatial_dims, skip_unreadable)
    array, meta, record = _read_all(_as_paths(path), options, isolated)
    affine = torch.as_tensor(meta.pop("affine"))
    return Volume(MetaTensor(array if record.channels > 1 else array[None], affine=affine, meta=meta), record)


def read_header(
    path: PathLike | Sequence[PathLike],
    *,
    channels: int | None = None,
    form: Form = "agree",
    fill_value: float | None = None,
    series_uid: str | None = None,
    uneven: Uneven = "refuse",
    tilt: Tilt = "keep",
    phase: int | None = None,
    spatial_dims: int | None = None,
    skip_unreadable: bool = False,
    isolated: bool | None = None,
) -> ReadRecord:
    """Return the record of `read_volume` from the headers alone, in milliseconds; damaged voxels go unnoticed."""
    options = ReadOptions(channels, form, fill_value, series_uid, uneven, tilt, phase, spatial_dims, skip_unreadable)
    paths = _reachable(_as_paths(path))
    read = shared_process().read_header if is_wanted(isolated) else read_one_header
    return _joined([_with_dims(read(item, options), options.spatial_dims) for item in paths])


class MedunetReader(ImageReader):
    """Reader for `monai.transforms.LoadImaged`, with the rules of `read_volume`.

    Use it as ``LoadImaged(keys, reader="medunet.io.MedunetReader", ensure_channel_first=True)``, or give an instance
    to choose options. `LoadImage` swallows what a reader's `read` raises and goes on to guess with other readers; so
    `read` only takes the path, and `get_data`, whose errors pass, does the reading. (Inside a `Compose`, MONAI wraps
    them in a RuntimeError whose `__cause__` is the typed error.)

    Meta data: `affine`, `original_affine` (4x4, RAS), `spatial_shape`, `original_channel_dim` (0, or NaN for none),
    `space`, `is_placed` (whether the image has a place in a patient), `filename_or_obj`, `name`, under which
    `SavePredictiond` writes, and `single_slice` where a volume of one slice was read as an image in the plane.
    `dicom_frames` of a DICOM series names the files and frames that were read, in the order of the volume's slices;
    `SavePredictiond` refers to these. `reader_warnings` has a line per warning. None of a patient.

    Args:
        channels: this and all others as in `read_volume`.
        form: NIfTI placement.
        fill_value: NIfTI fill.
        series_uid: DICOM series.
        uneven: DICOM rule for uneven slices.
        tilt: DICOM rule for a tilted gantry.
        phase: DICOM phase.
        spatial_dims: number of spatial axes that the model takes.
        skip_unreadable: whether DICOM files that cannot be read are left out.
        isolated: whether files are decoded in a child process.

    Raises:
        ConfigError: an option that does not exist.
    """

    def __init__(
        self,
        *,
        channels: int | None = None,
        form: Form = "agree",
        fill_value: float | None = None,
        series_uid: str | None = None,
        uneven: Uneven = "refuse",
        tilt: Tilt = "keep",
        phase: int | None = None,
        spatial_dims: int | None = None,
        skip_unreadable: bool = False,
        isolated: bool | None = None,
    ) -> None:
        super().__init__()
        self.isolated = isolated
        self.options = ReadOptions(
            channels, form, fill_value, series_uid, uneven, tilt, phase, spatial_dims, skip_unreadable
        )

    def verify_suffix(self, filename: PathLike | Sequence[PathLike]) -> bool:
        """Whether all paths are folders or files of a known kind."""
        paths = [Path(p) for p in ([filename] if isinstance(filename, str | os.PathLike) else filename)]
        return all(path.is_dir() or _suffix(path, strict=False) is not None for path in paths)

    def read(self, data: PathLike | Sequence[PathLike], **kwargs: Any) -> tuple[Path, ...]:
        """Take the path or paths; nothing is opened, see the class."""
        return _as_paths(data)

    def get_data(self, img: tuple[Path, ...]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Read what `read` has taken: ``(*spatial)``, or ``(C, *spatial)`` for several channels, and the meta data."""
        array, meta, _ = _read_all(img, self.options, self.isolated)
        return array, meta


def _read_all(
    paths: tuple[Path, ...], options: ReadOptions, isolated: bool | None
) -> tuple[npt.NDArray[np.float32], dict[str, Any], ReadRecord]:
    arrays, records, flattened = [], [], False
    read = shared_process().read if is_wanted(isolated) else read_one
    for path in _reachable(paths):
        array, found = read(path, options)
        record = _with_dims(found, options.spatial_dims)
        flattened |= record is not found
        arrays.append(array.reshape((record.channels,) * (record.channels > 1) + record.geometry.shape))
        records.append(record)
    record = _joined(records)
    if len(arrays) > 1:
        shape = record.geometry.shape
        array = np.concatenate([a.reshape(-1, *shape) for a in arrays])
    else:
        array = arrays[0]
    meta = {
        "affine": np.array(record.geometry.affine),
        "original_affine": np.array(record.geometry.affine),
        "spatial_shape": np.array(record.geometry.shape),
        "original_channel_dim": 0 if record.channels > 1 else float("nan"),
        "space": "RAS",
        "is_placed": record.is_placed,
        "filename_or_obj": str(paths[0]),
        "name": output_name(paths if len(paths) > 1 else paths[0]),
    }
    if flattened:
        meta["single_slice"] = True
    if record.warnings:
        meta["reader_warnings"] = "\n".join(record.warnings)
    if record.format == "dicom":
        meta["dicom_frames"] = encode_frames(record.frames)
    return array, meta, record


def read_one(path: Path, options: ReadOptions) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read one file or series in this process, by the reader of its format."""
    suffix = _suffix(path)
    if suffix == _DICOM:
        return read_dicom(path, options)
    if suffix == ZIP_SUFFIX:
        with unpacked(path) as inside:
            voxels, record = read_dicom(image_in(inside), options)
        return voxels, _within(record, path)
    if suffix in (*NIFTI_SUFFIXES, *RELATED_SUFFIXES):
        return read_nifti(path, options)
    if suffix in PILLOW_SUFFIXES:
        return read_pillow(path)
    return read_tiff(path) if suffix in TIFF_SUFFIXES else read_itk(path, options)


def read_one_header(path: Path, options: ReadOptions) -> ReadRecord:
    """Return the record of one file or series, in this process."""
    suffix = _suffix(path)
    if suffix == _DICOM:
        return read_dicom_header(path, options)
    if suffix == ZIP_SUFFIX:
        with unpacked(path) as inside:
            return _within(read_dicom_header(image_in(inside), options), path)
    if suffix in (*NIFTI_SUFFIXES, *RELATED_SUFFIXES):
        return read_nifti_header(path, options)
    if suffix in PILLOW_SUFFIXES:
        return read_pillow_header(path)
    return read_tiff_header(path) if suffix in TIFF_SUFFIXES else read_itk_header(path, options)


def _within(record: ReadRecord, archive: Path) -> ReadRecord:
    """Return a record whose files are named within their archive, which outlives what was unpacked."""
    frames = tuple(SourceFrame(archive / frame.file.name, frame.number) for frame in record.frames)
    return replace(record, path=archive, frames=frames)


def _with_dims(record: ReadRecord, spatial_dims: int | None) -> ReadRecord:
    """Refuse a volume where an image in the plane is wanted, and the other way round."""
    shape = record.geometry.shape
    if spatial_dims == 2 and record.is_single_slice:
        return replace(record, geometry=Geometry(record.geometry.affine, shape[:2]))
    if spatial_dims == 3 and (len(shape) == 2 or min(shape) == 1):
        raise GeometryError(
            "single slice where a volume is needed", file=record.path, received=shape, remedy="give the whole volume"
        )
    if spatial_dims == 2 and len(shape) == 3:
        raise GeometryError(
            "volume where an image in the plane is needed",
            file=record.path,
            received=shape,
            remedy="give single slices",
        )
    return record


def _joined(records: list[ReadRecord]) -> ReadRecord:
    """One record of files that are channels of one grid."""
    first = records[0]
    for other in records[1:]:
        if not other.geometry.is_close(first.geometry):
            raise GeometryError(
                "channels of one case lie on different grids",
                file=other.path,
                received=f"shape {other.geometry.shape}, spacing {other.geometry.spacing_mm}",
                expected=f"the grid of {first.path.name}: shape {first.geometry.shape}, {first.geometry.spacing_mm}",
                remedy="resample them to one grid",
            )
    if len(records) == 1:
        return first
    return ReadRecord(
        path=first.path,
        format=first.format,
        geometry=first.geometry,
        channels=sum(r.channels for r in records),
        dtype=first.dtype,
        warnings=tuple(warning for r in records for warning in r.warnings),
        files=sum(r.files for r in records),
        modality=first.modality,
        series=first.series,
        frames=first.frames,
    )


def _as_paths(path: PathLike | Sequence[PathLike]) -> tuple[Path, ...]:
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise DataError("no file given", expected="a path or several")
    return tuple(Path(p) for p in paths)


def _reachable(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the paths to read, an `.img` as the `.hdr` beside it, after the system has found each of them.

    Raises:
        DataError: a path that does not exist, may not be read, is too long or has a null character.
    """
    headers = {".img": ".hdr", ".IMG": ".HDR"}
    found = tuple(path.with_suffix(headers[path.suffix]) if path.suffix in headers else path for path in paths)
    for path in found:
        require_reachable(path)
    return found


_DICOM = ".dcm"


def _suffix(path: Path, *, strict: bool = True) -> str | None:
    """The ending that chooses the reader; '.dcm' for all that is DICOM."""
    name = path.name.lower()
    for suffix in IMAGE_SUFFIXES:
        if name.endswith(suffix) and not path.is_dir():
            if strict and looks_like_dicom(path):
                raise DataError(f"is a DICOM file with the ending {suffix}", file=path, remedy="rename it to .dcm")
            return suffix
    if path.is_dir() or name.endswith(DICOM_SUFFIXES) or is_dicom_file(path):
        return _DICOM
    if not strict:
        return None
    raise DataError(
        "unknown format",
        file=path,
        expected=", ".join((*IMAGE_SUFFIXES, *DICOM_SUFFIXES)),
        remedy="convert it, for example to .nii.gz",
    )
