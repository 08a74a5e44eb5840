"""NIfTI-1 and NIfTI-2: every byte is checked before a voxel is used."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medunet.errors import ConfigError, DataError, GeometryError
from medunet.geometry import Geometry

from .layout import copy_in_order
from .record import ReadRecord

Form = Literal["agree", "sform", "qform", "pixdim"]
"""Which of the header's placements to use: 'agree' refuses when sform and qform contradict each other or both are
missing; 'pixdim' uses the spacing only."""

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_HEADERS: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
"""Header size, the first number in the file, to the class that reads it."""

_LARGEST_HEADER = 540

_MAX_DEFLATE_RATIO = 1032
"""No deflate stream grows more than this (RFC 1951): a header that promises more bytes is lying."""

_SKIM_BYTES = 1 << 20
"""Size of the pieces in which bytes behind the voxels are decompressed and forgotten."""

_GZIP_MAGIC = b"\x1f\x8b"


def read_nifti(
    path: Path, *, channels: int | None = None, form: Form = "agree", fill_value: float | None = None
) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read a volume and its placement.

    Args:
        path: a `.nii` or `.nii.gz` file.
        channels: number of channels that a file with more than three axes must have in its last axis; without it
            such a file is refused.
        form: which placement of the header to use.
        fill_value: replaces NaN and infinite voxels; without it they are refused.

    Returns:
        The voxels, scaled by the header's slope and intercept, `(*spatial)` or `(C, *spatial)` for a file with several
        channels, and the record.

    Raises:
        DataError: unreadable, truncated or damaged file, a data type without order (RGB, complex), NaN or infinite
            voxels, an axis that was not declared.
        GeometryError: missing, contradictory, singular or infinite placement.
        ConfigError: `form` is not known.
    """
    stream = _Stream(path)
    layout = _parse(stream.head, path, channels=channels, form=form)
    raw = stream.read(layout.offset, layout.nbytes)
    # One pass from the file's (Fortran) order and type to contiguous float32.
    stored = np.frombuffer(raw, dtype=layout.dtype).reshape(layout.stored_shape, order="F").squeeze(layout.dropped)
    if layout.record.channels > 1:
        stored = np.moveaxis(stored, -1, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and reported below
        if (layout.slope, layout.inter) == (1.0, 0.0):
            voxels = copy_in_order(stored, dtype=np.float32)
        else:
            # In float64 as nibabel does: 16-bit integers times a slope lose digits in float32.
            voxels = np.ascontiguousarray(stored * layout.slope + layout.inter, dtype=np.float32)
    if layout.dtype.kind == "f" or layout.slope != 1.0:
        _fill_or_refuse(voxels, path, fill_value)
    return voxels, layout.record


def read_nifti_header(path: Path, *, channels: int | None = None, form: Form = "agree") -> ReadRecord:
    """The record alone, from the first bytes of the file; raises as `read_nifti`, but for damage further on."""
    return _parse(_Stream(path).head, path, channels=channels, form=form).record


class _Stream:
    """The bytes of a plain or gzipped file: `head` first, then a checked read of the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(1 << 16)
            self.size = path.stat().st_size
        except OSError as error:
            raise DataError(f"cannot be opened: {error.strerror or error}", file=path) from error
        if not head:
            raise DataError("file has zero bytes", file=path, remedy="copy it again from its source")
        self.gzipped = head.startswith(_GZIP_MAGIC)
        if not self.gzipped and path.name.lower().endswith(".gz"):
            raise DataError("not a gzip file in spite of its name", file=path, remedy="rename it to .nii")
        if self.gzipped:
            try:
                head = zlib.decompressobj(wbits=31).decompress(head, 2 * _LARGEST_HEADER)
            except zlib.error as error:
                raise DataError(f"damaged gzip file: {error}", file=path) from error
        self.head = head

    def read(self, offset: int, nbytes: int) -> memoryview:
        """`nbytes` from `offset` of the decompressed file, after its length and gzip's checksum have been verified."""
        needed = offset + nbytes
        bound = self.size * _MAX_DEFLATE_RATIO if self.gzipped else self.size
        if needed > bound:
            raise DataError(
                "file is shorter than its header says",
                file=self.path,
                received=f"{self.size} bytes",
                expected=f"{needed} bytes",
                remedy="copy it again from its source",
            )
        data = self.path.read_bytes()
        if self.gzipped:
            data = _gunzip(data, needed, self.path)
        if len(data) < needed:
            raise DataError(
                "file is shorter than its header says",
                file=self.path,
                received=f"{len(data)} bytes",
                expected=f"{needed} bytes",
                remedy="copy it again from its source",
            )
        return memoryview(data)[offset:needed]


def _gunzip(data: bytes, needed: int, path: Path) -> bytes:
    """Decompress all members to their ends, so that zlib compares length and CRC, but never more than is needed."""
    parts: list[bytes] = []
    total = 0
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            # Two bytes more than needed: zlib verifies the checksum only when it may go on to the end of the stream.
            parts.append(member.decompress(data, max(needed - total, 0) + 2))
            while not member.eof:  # the voxels are complete: skim what follows them
                if not member.decompress(member.unconsumed_tail, _SKIM_BYTES) and not member.unconsumed_tail:
                    break
        except zlib.error as error:
            raise DataError(f"damaged gzip file: {error}", file=path, remedy="copy it again from its source") from error
        if not member.eof:
            raise DataError("truncated gzip file", file=path, remedy="copy it again from its source")
        total += len(parts[-1])
        # Zero padding may follow a member; like gzip, ignore other bytes that start no member.
        data = member.unused_data.lstrip(b"\0")
        if not data.startswith(_GZIP_MAGIC):
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True)
class _Layout:
    """Where the voxels lie in the file and how to read them."""

    record: ReadRecord
    dtype: np.dtype[Any]
    stored_shape: tuple[int, ...]
    dropped: tuple[int, ...]
    """Axes of length one to remove."""
    slope: float
    inter: float
    offset: int

    @property
    def nbytes(self) -> int:
        return int(self.dtype.itemsize * np.prod(self.stored_shape, dtype=object))


def _parse(head: bytes, path: Path, *, channels: int | None, form: Form) -> _Layout:
    size = next((n for n in _HEADERS for order in ("little", "big") if int.from_bytes(head[:4], order) == n), None)
    if size is None or len(head) < size:
        raise DataError("not a NIfTI file", file=path, remedy="use NIfTI-1 or NIfTI-2 (.nii, .nii.gz)")
    try:
        header = _HEADERS[size].from_fileobj(io.BytesIO(head[:size]), check=False)
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        stored_shape = tuple(int(n) for n in header.get_data_shape())
        offset = int(header["vox_offset"])
    except (nib.spatialimages.HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"damaged NIfTI header: {error}", file=path) from error
    if header["magic"].item()[:2] not in (b"n+", b"ni"):
        raise DataError("not a NIfTI file", file=path, remedy="use NIfTI-1 or NIfTI-2 (.nii, .nii.gz)")
    if header["magic"].item()[:2] == b"ni":
        raise DataError("voxels lie in a separate .img file", file=path, remedy="convert to a single .nii.gz")
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise DataError(
            "voxels have no order", file=path, received=str(dtype), expected="integers or floats up to 64 bits"
        )
    if len(stored_shape) < 2 or min(stored_shape) < 1:
        raise DataError("header has an empty or missing axis", file=path, received=stored_shape)
    if offset < size:
        raise DataError("voxels start inside the header", file=path, received=offset, expected=f">= {size}")

    shape, dropped, n_channels = _split_axes(stored_shape, path, channels)
    try:
        affine, warnings = _placement(header, shape, form)
        geometry = Geometry(affine, shape)
    except GeometryError as error:
        raise GeometryError(
            error.cause, file=path, received=error.received, expected=error.expected, remedy=error.remedy
        ) from error
    record = ReadRecord(
        path=path,
        format="nifti",
        geometry=geometry,
        channels=n_channels,
        dtype=dtype.newbyteorder("=").name,
        warnings=warnings,
    )
    return _Layout(
        record=record,
        dtype=dtype,
        stored_shape=stored_shape,
        dropped=dropped,
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        offset=offset,
    )


def _split_axes(
    stored: tuple[int, ...], path: Path, channels: int | None
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Spatial shape, axes of length one to drop, number of channels.

    ``(x, y, z)``, ``(x, y, z, 1)``: one channel; ``(x, y, z, c)``, and ``(x, y, z, 1, c)`` as vectors are kept: c.
    """
    spatial = stored[:3]
    beyond = [axis for axis in range(3, len(stored)) if stored[axis] > 1]
    dropped = tuple(axis for axis in range(3, len(stored)) if stored[axis] == 1)
    if not beyond:
        return spatial, dropped, 1
    count = stored[beyond[0]]
    if len(beyond) > 1:
        raise DataError("volume has more than four axes", file=path, received=stored, remedy="split it into volumes")
    if channels is None:
        raise DataError(
            "volume has a fourth axis that nobody declared",
            file=path,
            received=stored,
            remedy="declare it by `channels`, or split the file into volumes",
        )
    if channels != count:
        raise DataError("wrong number of channels", file=path, received=count, expected=channels)
    return spatial, dropped, count


def _placement(header: Any, shape: tuple[int, ...], form: Form) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine by rule `form`, and warnings."""
    if form not in ("agree", "sform", "qform", "pixdim"):
        raise ConfigError("unknown form", received=form, expected="agree, sform, qform or pixdim")
    n_axes = len(shape)
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)[1 : n_axes + 1]
    sform = np.asarray(header.get_sform(), dtype=np.float64) if int(header["sform_code"]) > 0 else None
    if form == "sform" or (form == "agree" and int(header["qform_code"]) <= 0):
        if sform is None:
            raise GeometryError(
                "header has no sform" if form == "sform" else "header has neither sform nor qform",
                remedy="choose form='pixdim' if the spacing alone is enough",
            )
        return sform, ()
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise GeometryError("impossible pixdim", received=pixdim.tolist(), expected="positive spacing")
    if form == "pixdim":
        return np.diag([*pixdim, *([1.0] * (3 - n_axes)), 1.0]), ("placement ignored: spacing only",)
    if int(header["qform_code"]) <= 0:
        raise GeometryError("header has no qform", remedy="choose form='sform' or form='pixdim'")
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise GeometryError(f"qform cannot be used: {error}", remedy="choose form='sform'") from error
    if sform is None or form == "qform":
        return qform, ()
    first, second = Geometry(sform, shape), Geometry(qform, shape)
    if first.is_close(second):
        return sform, ()
    raise GeometryError(
        "sform and qform disagree",
        received=f"{first.corner_distance_mm(second):.3g} mm apart at a corner",
        remedy="choose form='sform' or form='qform'",
    )


def _fill_or_refuse(voxels: npt.NDArray[np.float32], path: Path, fill_value: float | None) -> None:
    finite = np.isfinite(voxels)
    bad = voxels.size - int(np.count_nonzero(finite))
    if bad and fill_value is None:
        raise DataError(
            "voxels are NaN or infinite", file=path, received=f"{bad} of {voxels.size}", remedy="give a fill_value"
        )
    if bad:
        voxels[~finite] = fill_value
