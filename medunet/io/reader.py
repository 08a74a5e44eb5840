"""One door for all formats: `read_volume` for people, `MedunetReader` for MONAI's `LoadImaged`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader

from medunet.errors import DataError, GeometryError

from .dicom import read_dicom, read_dicom_header
from .images import (
    ITK_SUFFIXES,
    PILLOW_SUFFIXES,
    TIFF_SUFFIXES,
    read_itk,
    read_itk_header,
    read_pillow,
    read_pillow_header,
    read_tiff,
    read_tiff_header,
)
from .names import output_name
from .nifti import NIFTI_SUFFIXES, Form, read_nifti, read_nifti_header
from .record import ReadRecord

IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *PILLOW_SUFFIXES, *TIFF_SUFFIXES, *ITK_SUFFIXES)
"""Endings of the files that can be read, in lower case; a folder is taken for a DICOM series."""

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
) -> Volume:
    """Read an image in the plane or a volume.

    Args:
        path: a file, a folder with a DICOM series, or several of them, which become channels of one grid.
        channels: number of channels that a NIfTI file with a fourth axis must have; without it such files are refused.
        form: NIfTI: which placement of the header to use, see `medunet.io.nifti.Form`.
        fill_value: NIfTI: replaces NaN and infinite voxels, which are refused otherwise.
        series_uid: DICOM: which series to read where a folder holds several.

    Returns:
        ``Volume(image, record)``: NIfTI, NRRD, MetaImage and DICOM in the order ``(C, x, y, z)`` of their affine; PNG,
        TIFF, BMP and JPEG as ``(C, H, W)``, a TIFF stack as ``(C, pages, H, W)``.

    Raises:
        DataError: unreadable, damaged, unknown format, NaN voxels.
        GeometryError: a placement that is missing, impossible, contradictory, or differs between channels.
    """
    array, meta, record = _read_all(_as_paths(path), channels, form, fill_value, series_uid)
    affine = torch.as_tensor(meta.pop("affine"))
    return Volume(MetaTensor(array if record.channels > 1 else array[None], affine=affine, meta=meta), record)


def read_header(
    path: PathLike | Sequence[PathLike],
    *,
    channels: int | None = None,
    form: Form = "agree",
    series_uid: str | None = None,
) -> ReadRecord:
    """The record that `read_volume` gives, from the headers alone (milliseconds; damaged voxels are not seen)."""
    records = []
    for item in _as_paths(path):
        if item.is_dir():
            records.append(read_dicom_header(item, series_uid=series_uid))
        elif (suffix := _suffix(item)) in NIFTI_SUFFIXES:
            records.append(read_nifti_header(item, channels=channels, form=form))
        elif suffix in PILLOW_SUFFIXES:
            records.append(read_pillow_header(item))
        elif suffix in TIFF_SUFFIXES:
            records.append(read_tiff_header(item))
        else:
            records.append(read_itk_header(item))
    return _joined(records)


class MedunetReader(ImageReader):
    """Reader for `monai.transforms.LoadImaged`, with the rules of `read_volume`.

    Use it as ``LoadImaged(keys, reader="medunet.io.MedunetReader", ensure_channel_first=True)``, or give an instance
    to choose options. `LoadImage` swallows what a reader's `read` raises and goes on to guess with other readers; so
    `read` only takes the path, and `get_data`, whose errors pass, does the reading. (Inside a `Compose`, MONAI wraps
    them in a RuntimeError whose `__cause__` is the typed error.)

    Meta data: `affine`, `original_affine` (4x4, RAS), `spatial_shape`, `original_channel_dim` (0, or NaN for none),
    `space`, `filename_or_obj`, and `name`, under which `SavePredictiond` writes.

    Args:
        channels: as in `read_volume`.
        form: as in `read_volume`.
        fill_value: as in `read_volume`.
        series_uid: as in `read_volume`.
    """

    def __init__(
        self,
        *,
        channels: int | None = None,
        form: Form = "agree",
        fill_value: float | None = None,
        series_uid: str | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.form: Form = form
        self.fill_value = fill_value
        self.series_uid = series_uid

    def verify_suffix(self, filename: PathLike | Sequence[PathLike]) -> bool:
        """Whether all paths are folders or end in one of `IMAGE_SUFFIXES`."""
        paths = [filename] if isinstance(filename, str | os.PathLike) else filename
        return all(Path(p).is_dir() or _suffix(Path(p), strict=False) is not None for p in paths)

    def read(self, data: PathLike | Sequence[PathLike], **kwargs: Any) -> tuple[Path, ...]:
        """Take the path or paths; nothing is opened, see the class."""
        return _as_paths(data)

    def get_data(self, img: tuple[Path, ...]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Read what `read` has taken: ``(*spatial)``, or ``(C, *spatial)`` for several channels, and the meta data."""
        array, meta, _ = _read_all(img, self.channels, self.form, self.fill_value, self.series_uid)
        return array, meta


def _read_all(
    paths: tuple[Path, ...], channels: int | None, form: Form, fill_value: float | None, series_uid: str | None
) -> tuple[npt.NDArray[np.float32], dict[str, Any], ReadRecord]:
    arrays, records = [], []
    for path in paths:
        if path.is_dir():
            array, record = read_dicom(path, series_uid=series_uid)
        elif (suffix := _suffix(path)) in NIFTI_SUFFIXES:
            array, record = read_nifti(path, channels=channels, form=form, fill_value=fill_value)
        elif suffix in PILLOW_SUFFIXES:
            array, record = read_pillow(path)
        elif suffix in TIFF_SUFFIXES:
            array, record = read_tiff(path)
        else:
            array, record = read_itk(path)
        arrays.append(array)
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
        "filename_or_obj": str(paths[0]),
        "name": output_name(paths if len(paths) > 1 else paths[0]),
    }
    return array, meta, record


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
    )


def _as_paths(path: PathLike | Sequence[PathLike]) -> tuple[Path, ...]:
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise DataError("no file given", expected="a path or several")
    return tuple(Path(p) for p in paths)


def _suffix(path: Path, *, strict: bool = True) -> str | None:
    name = path.name.lower()
    for suffix in IMAGE_SUFFIXES:
        if name.endswith(suffix):
            return suffix
    if not strict:
        return None
    remedy = "give the folder of the series" if name.endswith(".dcm") else "convert it, for example to .nii.gz"
    if not path.exists():
        raise DataError("does not exist", file=path)
    raise DataError("unknown format", file=path, expected=", ".join(IMAGE_SUFFIXES), remedy=remedy)
