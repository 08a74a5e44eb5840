"""One entry point for all formats: `read_volume` for callers, `MedunetReader` for MONAI's `LoadImaged`."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .decode import Voxels, read_one, read_one_header, suffix_of
from .isolation import SWITCH, shared_process
from .limits import require_reachable
from .names import output_name
from .options import Form, ReadOptions, Tilt, Uneven
from .record import ReadRecord

PICTURES = ("png", "bmp", "jpeg", "tiff")  # formats of records that may be grey or colour
COLOURS = 3  # channels of a colour picture

PathLike = str | os.PathLike[str]


class Volume(NamedTuple):
    """Voxels ``(C, *spatial)`` float32 with the affine in RAS mm, and the record of what was read."""

    image: MetaTensor
    record: ReadRecord


def read_volume(path: PathLike | Sequence[PathLike], *, isolated: bool | None = None, **options: Any) -> Volume:
    """Read a 2D image or a volume.

    Args:
        path: a file, a folder or a ZIP archive with a DICOM series, or several of these as channels of one grid.
        isolated: decode in a child process with limits of memory and time; None follows the environment variable
            `MEDUNET_ISOLATE`.
        options: fields of :class:`medunet.io.ReadOptions`; the defaults reject every ambiguous file.

    Returns:
        ``Volume(image, record)``: NIfTI, NRRD, MetaImage and DICOM in the order ``(C, x, y, z)`` of their affine, a
        DICOM file with one slice or a radiograph as ``(C, x, y)``; PNG, TIFF, BMP and JPEG as ``(C, x, y)``, x along
        the width and y along the height as in MONAI's readers, a TIFF stack as ``(C, x, y, pages)``.

    Raises:
        DataError: unreadable, damaged, unknown format, NaN voxels, or a choice of axis, series or phase is missing.
        GeometryError: a placement that is missing, impossible, contradictory, or differs between channels.
        SecurityError: a DICOMDIR or an archive that points outside its folder, or is too large when unpacked.
        ConfigError: an invalid option.
    """
    array, meta, record = _read_all(_as_paths(path), ReadOptions(**options), isolated)
    affine = torch.as_tensor(meta.pop("affine"))
    return Volume(MetaTensor(array if record.channels > 1 else array[None], affine=affine, meta=meta), record)


def read_header(path: PathLike | Sequence[PathLike], *, isolated: bool | None = None, **options: Any) -> ReadRecord:
    """Return the record of `read_volume` from the headers alone, in milliseconds; damaged voxels are not detected."""
    checked = ReadOptions(**options)
    records = [_apart(read_one_header, item, checked, isolated) for item in _reachable(_as_paths(path))]
    record = _joined([_with_dims(record, checked.spatial_dims) for record in records])
    return _as_colour(record, checked) if len(records) == 1 else record


class MedunetReader(ImageReader):
    """Reader for `monai.transforms.LoadImaged`, with the rules of `read_volume`.

    Use it as ``LoadImaged(keys, reader="medunet.io.MedunetReader", ensure_channel_first=True)``, or pass an instance to
    choose options. Inside a `Compose`, MONAI wraps an error in a RuntimeError whose `__cause__` is the typed error.

    Metadata: `affine`, `original_affine` (4x4, RAS), `spatial_shape`, `original_channel_dim` (0, or NaN for none),
    `space`, `is_placed` (whether the image has a place in a patient), `modality` of DICOM, `filename_or_obj`, `name` of
    a result, `single_slice` if a volume of one slice was read as a 2D image, `dicom_frames` (files and frames of a
    DICOM series, by slice) and `reader_warnings` (a line per warning). Nothing identifies a patient.

    The arguments are the fields of :class:`medunet.io.ReadOptions`, and `isolated` of `read_volume`.
    """

    # `LoadImage` ignores exceptions of a reader's `read` and tries other readers. Therefore `read` only takes the path,
    # and `get_data`, whose exceptions are raised, does the reading.

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
        """Return whether all paths are folders or files of a known format."""
        return all(path.is_dir() or suffix_of(path, strict=False) is not None for path in _as_paths(filename))

    def read(self, data: PathLike | Sequence[PathLike], **kwargs: Any) -> tuple[Path, ...]:
        """Return the paths; nothing is opened."""
        return _as_paths(data)

    def get_data(self, img: tuple[Path, ...]) -> tuple[Voxels, dict[str, Any]]:
        """Read the paths: ``(*spatial)``, or ``(C, *spatial)`` for several channels, and the metadata."""
        array, meta, _ = _read_all(img, self.options, self.isolated)
        return array, meta


def _read_all(
    paths: tuple[Path, ...], options: ReadOptions, isolated: bool | None
) -> tuple[Voxels, dict[str, Any], ReadRecord]:
    arrays, records, is_flattened = [], [], False
    for path in _reachable(paths):
        array, stored = _apart(read_one, path, options, isolated)
        record = _with_dims(stored, options.spatial_dims)
        is_flattened |= record is not stored
        arrays.append(array.reshape((record.channels,) * (record.channels > 1) + record.geometry.shape))
        records.append(record)
    record = _joined(records)
    shape = record.geometry.shape
    array = arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(-1, *shape) for a in arrays])
    if len(arrays) == 1 and (coloured := _as_colour(record, options)) is not record:
        array, record = np.repeat(array[None], coloured.channels, axis=0), coloured
    meta = metadata(record, paths)
    if is_flattened:
        meta["single_slice"] = True
    if record.warnings:
        meta["reader_warnings"] = "\n".join(record.warnings)
    if record.format == "dicom":
        # as text: unlike a list, it passes through the collation of batches of any size
        meta["dicom_frames"] = json.dumps([(str(frame.file), frame.number) for frame in record.frames])
    return array, meta, record


def metadata(record: ReadRecord, paths: Sequence[Path]) -> dict[str, Any]:
    """Return what MONAI's transforms and `SavePredictiond` need to know about an image."""
    return {
        "affine": np.array(record.geometry.affine),
        "original_affine": np.array(record.geometry.affine),
        "spatial_shape": np.array(record.geometry.shape),
        "original_channel_dim": 0 if record.channels > 1 else float("nan"),
        "space": "RAS",
        "is_placed": record.is_placed,
        "modality": record.modality,
        "filename_or_obj": str(paths[0]),
        "name": output_name(paths if len(paths) > 1 else paths[0]),
    }


def _apart(read: Callable[[Path, ReadOptions], Any], path: Path, options: ReadOptions, isolated: bool | None) -> Any:
    if isolated is None:
        isolated = os.environ.get(SWITCH, "") not in ("", "0")
    return shared_process().call(read, path, options) if isolated else read(path, options)


def _with_dims(record: ReadRecord, spatial_dims: int | None) -> ReadRecord:
    """Reject a volume if a 2D image is required, and vice versa."""
    shape = record.geometry.shape
    if spatial_dims == 2 and record.is_single_slice:
        return replace(record, geometry=Geometry(record.geometry.affine, shape[:2]))
    if spatial_dims == 3 and (len(shape) == 2 or min(shape) == 1):
        raise GeometryError("must be a volume, not a single slice", file=record.path, received=shape)
    if spatial_dims == 2 and len(shape) == 3:
        raise GeometryError("must be a 2D image, not a volume", file=record.path, received=shape)
    return record


def _as_colour(record: ReadRecord, options: ReadOptions) -> ReadRecord:
    """Return the record of a grey picture as that of a colour picture, with a warning, if colour is required."""
    is_grey_picture = record.format in PICTURES and record.channels == 1 and len(record.geometry.shape) == 2
    if options.channels != COLOURS or not is_grey_picture:
        return record
    return replace(record, channels=COLOURS, warnings=(*record.warnings, "grey picture is read as colour"))


def _joined(records: list[ReadRecord]) -> ReadRecord:
    """Return one record of files that are channels of one grid."""
    first = records[0]
    for other in records[1:]:
        if not other.geometry.is_close(first.geometry):
            cause, expected = "channels of one case lie on different grids", f"{first.path.name}: {first.geometry}"
            raise GeometryError(cause, file=other.path, received=other.geometry, expected=expected)
    return replace(
        first,
        channels=sum(record.channels for record in records),
        warnings=tuple(warning for record in records for warning in record.warnings),
        files=sum(record.files for record in records),
    )


def _as_paths(path: PathLike | Sequence[PathLike]) -> tuple[Path, ...]:
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise DataError("no file given")
    return tuple(map(Path, paths))


def _reachable(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the paths to read, with `.hdr` in place of `.img`; a path that cannot be reached is a DataError."""
    headers = {".img": ".hdr", ".IMG": ".HDR"}
    reachable = tuple(path.with_suffix(headers[path.suffix]) if path.suffix in headers else path for path in paths)
    for path in reachable:
        require_reachable(path)
    return reachable
