"""NIfTI-1, NIfTI-2, Analyze 7.5 and FreeSurfer's MGH: every byte is checked before a voxel is used."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.freesurfer.mghformat import MGHHeader

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .layout import copy_in_order
from .limits import require_memory
from .options import DEFAULTS, Form, ReadOptions
from .packed import PackedFile
from .record import ReadRecord

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".nii.bz2")

RELATED_SUFFIXES = (".hdr", ".mgh", ".mgz")
"""Header of a pair with an `.img` file (NIfTI or Analyze 7.5), and FreeSurfer's format."""

_SPACING_IS_ENOUGH = "pass --form pixdim if the spacing alone is enough"
_MGH_VERSION, _MGH_HEADER_BYTES, _MGH_PLACED = b"\0\0\0\1", 284, 28
"""How MGH files begin, where their voxels begin, and where the header says whether it has an orientation."""

_HEADERS: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
"""Header size, the first number in the file, to the class that reads it."""


FLOAT32_ROUNDING = 1e-6
"""Relative difference of numbers that two programs have rounded to float32, in another order of arithmetic."""

QUATERNION_ROUNDING = 4 * 2.0**-24
"""The same of the parts of a quaternion, which are at most 1."""

PIXDIM_TOLERANCE = 0.01
"""Relative difference of pixdim and the sform's spacing that is worth a warning: both are float32 of one number."""

_MILLIMETRE, _SPATIAL_UNITS = 2, 0b111
"""NIfTI's code of millimetres, and the bits of `xyzt_units` that hold the spatial one; 0 means unknown."""


def read_nifti(path: Path, options: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read a volume and its placement.

    Args:
        path: a `.nii`, `.nii.gz`, `.nii.bz2`, `.mgh` or `.mgz` file, or the `.hdr` beside an `.img`.
        options: `channels`, `form` and `fill_value` are used.

    Returns:
        The voxels, scaled by the header's slope and intercept, `(*spatial)` or `(C, *spatial)` for a file with several
        channels, and the record.

    Raises:
        DataError: unreadable, truncated or damaged file, a data type without order (RGB, complex), NaN or infinite
            voxels, an axis that was not declared.
        GeometryError: missing, contradictory, singular or infinite placement.
    """
    stream = PackedFile(path)
    layout = _parse(stream.head, path, options)
    if path.suffix.lower() == ".hdr":
        stream = PackedFile(path.with_suffix(".IMG" if path.suffix.isupper() else ".img"))
    stream.require(layout.offset + layout.nbytes)
    require_memory(layout.record.geometry.shape, layout.record.channels, path)
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
        _fill_or_refuse(voxels, path, options.fill_value)
    return voxels, layout.record


def read_nifti_header(path: Path, options: ReadOptions = DEFAULTS) -> ReadRecord:
    """The record alone, from the first bytes of the file; raises as `read_nifti`, but for damage further on."""
    return _parse(PackedFile(path).head, path, options).record


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


def _parse(head: bytes, path: Path, options: ReadOptions) -> _Layout:
    if path.suffix.lower() in (".mgh", ".mgz"):
        return _parse_mgh(head, path, options)
    is_pair = path.suffix.lower() == ".hdr"
    size = next((n for n in _HEADERS for order in ("little", "big") if int.from_bytes(head[:4], order) == n), None)
    if size is None or len(head) < size:
        raise DataError("not a NIfTI file", file=path, remedy="use NIfTI-1 or NIfTI-2 (.nii, .nii.gz)")
    is_analyze = is_pair and size == 348 and head[344:347] not in (b"n+1", b"ni1")
    kind = nib.Spm2AnalyzeHeader if is_analyze else _HEADERS[size]
    try:
        header = kind.from_fileobj(io.BytesIO(head[:size]), check=False)
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        stored_shape = tuple(int(n) for n in header.get_data_shape())
        offset = int(header["vox_offset"])
    except (nib.spatialimages.HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"damaged {'Analyze' if is_analyze else 'NIfTI'} header: {error}", file=path) from error
    if not is_analyze and header["magic"].item()[:2] != (b"ni" if is_pair else b"n+"):
        if header["magic"].item()[:2] not in (b"n+", b"ni"):
            raise DataError("not a NIfTI file", file=path, remedy="use NIfTI-1 or NIfTI-2 (.nii, .nii.gz)")
        found = "one file" if is_pair else "a header with a separate .img file"
        raise DataError("name does not match the header", file=path, received=f"header of {found}")
    if offset < (0 if is_pair else size):
        raise DataError("voxels start inside the header", file=path, received=offset, expected=f">= {size}")
    if is_analyze:
        place = partial(_analyze_placement, header, options.form)
        oddities = [] if slope in (None, 1.0) else ["voxels scaled by SPM's factor"]
    else:
        if float(header["pixdim"][0]) == 0:
            header["pixdim"][0] = 1  # the standard: a factor of 0 means 1
        place = partial(_placement, header, form=options.form)
        oddities = _oddities(header)
    return _layout(
        path,
        options,
        dtype=dtype,
        stored_shape=stored_shape,
        place=place,
        oddities=oddities,
        format="analyze" if is_analyze else "nifti",
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        offset=offset,
    )


def _parse_mgh(head: bytes, path: Path, options: ReadOptions) -> _Layout:
    """Parse the header of FreeSurfer's format: big-endian, RAS, voxels from byte 284."""
    if len(head) < _MGH_HEADER_BYTES or not head.startswith(_MGH_VERSION):
        raise DataError("not an MGH file", file=path)
    try:
        header = MGHHeader(head[:_MGH_HEADER_BYTES], check=False)
        dtype = np.dtype(header.get_data_dtype()).newbyteorder(">")
        stored_shape = tuple(int(n) for n in header["dims"])
    except (ValueError, KeyError, nib.spatialimages.HeaderDataError) as error:
        raise DataError(f"damaged MGH header: {error}", file=path) from error
    has_placement = int.from_bytes(head[_MGH_PLACED : _MGH_PLACED + 2], "big") == 1

    def place(shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
        if not has_placement:
            raise GeometryError("header has neither spacing nor orientation")
        if options.form == "pixdim":
            return _spacing_only(header["delta"])
        return np.asarray(header.get_affine(), dtype=np.float64), ()

    return _layout(
        path, options, dtype=dtype, stored_shape=stored_shape, place=place, format="mgh", offset=_MGH_HEADER_BYTES
    )


def _layout(
    path: Path,
    options: ReadOptions,
    *,
    dtype: np.dtype[Any],
    stored_shape: tuple[int, ...],
    place: Callable[[tuple[int, ...]], tuple[np.ndarray, tuple[str, ...]]],
    format: str,
    offset: int,
    slope: float = 1.0,
    inter: float = 0.0,
    oddities: Sequence[str] = (),
) -> _Layout:
    """Check what the formats have in common; `place` returns the affine of a shape, and warnings."""
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise DataError(
            "voxels have no order", file=path, received=str(dtype), expected="integers or floats up to 64 bits"
        )
    if len(stored_shape) < 2 or min(stored_shape) < 1:
        raise DataError("header has an empty or missing axis", file=path, received=stored_shape)
    shape, dropped, n_channels = _split_axes(stored_shape, path, options.channels)
    try:
        affine, warnings = place(shape)
        geometry = Geometry(affine, shape)
    except GeometryError as error:
        raise error.at(path) from error
    record = ReadRecord(
        path=path,
        format=format,
        geometry=geometry,
        channels=n_channels,
        dtype=dtype.newbyteorder("=").name,
        warnings=(*warnings, *oddities),
    )
    return _Layout(
        record=record,
        dtype=dtype,
        stored_shape=stored_shape,
        dropped=dropped,
        slope=slope,
        inter=inter,
        offset=offset,
    )


def _oddities(header: Any) -> list[str]:
    """What the standard allows or other readers ignore, but a person should know."""
    warnings = []
    slope = float(header["scl_slope"])
    if not np.isfinite(slope):
        warnings.append(f"scl_slope {slope} ignored")
    units = int(header["xyzt_units"]) & _SPATIAL_UNITS
    if units not in (0, _MILLIMETRE):
        warnings.append(f"header claims {'metres' if units == 1 else 'micrometres'}; lengths are taken as mm")
    return warnings


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


def _spacing_only(spacing: npt.ArrayLike) -> tuple[np.ndarray, tuple[str, ...]]:
    lengths = [float(length) for length in np.asarray(spacing)]
    return np.diag([*lengths, *([1.0] * (3 - len(lengths))), 1.0]), ("placement ignored: spacing only",)


def _analyze_placement(
    header: nib.Spm2AnalyzeHeader, form: Form, shape: tuple[int, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    if form != "pixdim":
        raise GeometryError("Analyze 7.5 does not say which side is left", remedy=_SPACING_IS_ENOUGH)
    return _spacing_only(header["pixdim"][1 : len(shape) + 1])


def _placement(header: Any, shape: tuple[int, ...], form: Form) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine by rule `form`, and warnings."""
    n_axes = len(shape)
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)[1 : n_axes + 1]
    sform = np.asarray(header.get_sform(), dtype=np.float64) if int(header["sform_code"]) > 0 else None
    if form == "sform" and sform is None:
        raise GeometryError("header has no sform", remedy=_SPACING_IS_ENOUGH)
    if form == "agree" and sform is None and int(header["qform_code"]) <= 0:
        raise GeometryError("header has neither sform nor qform", remedy=_SPACING_IS_ENOUGH)
    if form == "sform" and sform is not None:
        return sform, ()
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise GeometryError(
            "impossible pixdim",
            received=pixdim.tolist(),
            expected="positive spacing",
            remedy=None if sform is None else "pass --form sform if that is right",
        )
    if form == "agree" and sform is not None and int(header["qform_code"]) <= 0:
        spacing = np.linalg.norm(sform[:3, :n_axes], axis=0)
        if np.allclose(spacing, pixdim, rtol=PIXDIM_TOLERANCE):
            return sform, ()
        return sform, (f"sform used; pixdim {_shown(pixdim)} differs from its spacing {_shown(spacing)}",)
    if form == "pixdim":
        return _spacing_only(pixdim)
    if int(header["qform_code"]) <= 0:
        raise GeometryError("header has no qform", remedy="pass --form sform or --form pixdim")
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise GeometryError(f"qform cannot be used: {error}", remedy="pass --form sform") from error
    if sform is None or form == "qform":
        return qform, ()
    first, second = Geometry(sform, shape), Geometry(qform, shape)
    if first.is_close(second) or _is_rounded_from(header, sform):
        return sform, ()
    raise GeometryError(
        "sform and qform disagree",
        received=f"{first.corner_distance_mm(second):.3g} mm apart at a corner",
        remedy="pass --form sform or --form qform",
    )


def _is_rounded_from(header: nib.Nifti1Header, sform: npt.NDArray[np.float64]) -> bool:
    """Whether the qform is what the sform becomes when it is written as one.

    The header keeps three parts of a unit quaternion in float32 and leaves out a = sqrt(1 - b^2 - c^2 - d^2). Near a
    half turn, which RAS and LPS are apart, a is nearly zero and takes most of the rounding: corners of a large scan
    that is slightly oblique move by half a millimetre.
    """
    expected = header.copy()
    try:
        expected.set_qform(sform, code=1, strip_shears=False)
    except (ValueError, nib.spatialimages.HeaderDataError):
        return False
    turns = [np.array([h[f"quatern_{part}"] for part in "bcd"], dtype=np.float64) for h in (header, expected)]
    difference = min(np.abs(turns[0] - turns[1]).max(), np.abs(turns[0] + turns[1]).max())  # q and -q are one turn
    found, wanted = ([float(h[f"qoffset_{axis}"]) for axis in "xyz"] for h in (header, expected))
    return bool(
        float(difference) <= QUATERNION_ROUNDING
        and float(header["pixdim"][0]) == float(expected["pixdim"][0])
        and np.allclose(header["pixdim"][1:4], expected["pixdim"][1:4], rtol=FLOAT32_ROUNDING, atol=0)
        and np.allclose(found, wanted, rtol=FLOAT32_ROUNDING, atol=1e-4)
    )


def _shown(values: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _fill_or_refuse(voxels: npt.NDArray[np.float32], path: Path, fill_value: float | None) -> None:
    finite = np.isfinite(voxels)
    bad = voxels.size - int(np.count_nonzero(finite))
    if bad and fill_value is None:
        raise DataError(
            "voxels are NaN or infinite",
            file=path,
            received=f"{bad} of {voxels.size}",
            remedy="pass --fill-value, such as --fill-value 0",
        )
    if bad:
        voxels[~finite] = fill_value
