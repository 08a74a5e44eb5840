"""NIfTI-1, NIfTI-2, Analyze 7.5 and FreeSurfer's MGH: every byte is checked before a voxel is used."""

import io
from collections.abc import Callable
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
RELATED_SUFFIXES = (".hdr", ".mgh", ".mgz")  # header of a pair with an `.img` (NIfTI or Analyze 7.5), and FreeSurfer's

_SPACING_IS_ENOUGH = "pass --form pixdim if the spacing alone is enough"

# How MGH files start, where their voxels start, and where the header states whether it has an orientation.
_MGH_VERSION, _MGH_HEADER_BYTES, _MGH_PLACED = b"\0\0\0\1", 284, 28

_HEADERS: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by size, the first number in the file

FLOAT32_ROUNDING = 1e-6  # relative difference of numbers that two programs have rounded to float32
QUATERNION_ROUNDING = 4 * 2.0**-24  # the same for the parts of a quaternion, which are at most 1
PIXDIM_TOLERANCE = 0.01  # relative difference of pixdim and the sform's spacing that causes a warning
_SPATIAL_UNITS = 0b111  # the bits of `xyzt_units` that have the unit of length; 0 means unknown
_SCALED = "voxels scaled by SPM's factor"
_OTHER_UNITS = {1: "metres", 3: "micrometres"}

_DAMAGED = (nib.spatialimages.HeaderDataError, ValueError, KeyError, OverflowError)

Placement = tuple[npt.NDArray[np.float64], tuple[str, ...]]  # affine and warnings


@dataclass(frozen=True)
class _Stored:
    """What a header states about the voxels. `place` returns the affine and warnings for a spatial shape."""

    format: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    place: Callable[[tuple[int, ...], Form], Placement]
    slope: float = 1.0
    inter: float = 0.0
    warnings: tuple[str, ...] = ()


def read_nifti(path: Path, options: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read a volume ``(*spatial)``, or ``(C, *spatial)`` for several channels, and its record.

    `path` is a `.nii`, `.nii.gz`, `.nii.bz2`, `.mgh` or `.mgz` file, or the `.hdr` beside an `.img`.
    """
    stream = PackedFile(path)
    stored = _parse(stream.head, path)
    record, dropped = _record(stored, path, options)
    if path.suffix.lower() == ".hdr":
        stream = PackedFile(path.with_suffix(".IMG" if path.suffix.isupper() else ".img"))
    nbytes = int(stored.dtype.itemsize * np.prod(stored.shape, dtype=object))
    stream.require(stored.offset + nbytes)
    require_memory(record.geometry.shape, record.channels, path)
    # One pass from the file's (Fortran) order and type to contiguous float32.
    raw = np.frombuffer(stream.read(stored.offset, nbytes), dtype=stored.dtype)
    array = raw.reshape(stored.shape, order="F").squeeze(dropped)
    if record.channels > 1:
        array = np.moveaxis(array, -1, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and reported below
        if (stored.slope, stored.inter) == (1.0, 0.0):
            voxels = copy_in_order(array, dtype=np.float32)
        else:
            # In float64 as nibabel does: 16-bit integers times a slope lose digits in float32.
            voxels = np.ascontiguousarray(array * stored.slope + stored.inter, dtype=np.float32)
    if stored.dtype.kind == "f" or stored.slope != 1.0:
        finite = np.isfinite(voxels)
        n_bad = voxels.size - int(np.count_nonzero(finite))
        if n_bad and options.fill_value is None:
            received, remedy = f"{n_bad} of {voxels.size}", "pass --fill-value, such as --fill-value 0"
            raise DataError("voxels are NaN or infinite", file=path, received=received, remedy=remedy)
        if n_bad:
            voxels[~finite] = options.fill_value
    return voxels, record


def read_nifti_header(path: Path, options: ReadOptions = DEFAULTS) -> ReadRecord:
    """Return the record of `read_nifti` from the first bytes of the file."""
    return _record(_parse(PackedFile(path).head, path), path, options)[0]


def _parse(head: bytes, path: Path) -> _Stored:
    if path.suffix.lower() in (".mgh", ".mgz"):
        return _parse_mgh(head, path)
    is_pair = path.suffix.lower() == ".hdr"
    size = next((n for n in _HEADERS for order in ("little", "big") if int.from_bytes(head[:4], order) == n), None)
    if size is None or len(head) < size:
        raise DataError("not a NIfTI file", file=path)
    is_analyze = is_pair and size == 348 and head[344:347] not in (b"n+1", b"ni1")
    kind = nib.Spm2AnalyzeHeader if is_analyze else _HEADERS[size]
    try:
        header = kind.from_fileobj(io.BytesIO(head[:size]), check=False)
        slope, inter = header.get_slope_inter()
        stored = _Stored(
            format="analyze" if is_analyze else "nifti",
            dtype=header.get_data_dtype(),
            shape=tuple(int(n) for n in header.get_data_shape()),
            offset=int(header["vox_offset"]),
            place=partial(_place_analyze if is_analyze else _place_nifti, header),
            slope=1.0 if slope is None else float(slope),
            inter=0.0 if inter is None else float(inter),
            warnings=_nifti_warnings(header) if not is_analyze else (_SCALED,) if slope not in (None, 1.0) else (),
        )
    except _DAMAGED as error:
        raise DataError(f"damaged {'Analyze' if is_analyze else 'NIfTI'} header: {error}", file=path) from error
    if not is_analyze:
        magic = header["magic"].item()[:2]
        if magic not in (b"n+", b"ni"):
            raise DataError("not a NIfTI file", file=path)
        if (magic == b"ni") != is_pair:
            claimed = "one file" if is_pair else "a header with a separate .img file"
            raise DataError("name does not match the header", file=path, received=f"header of {claimed}")
        if float(header["pixdim"][0]) == 0:
            header["pixdim"][0] = 1  # the standard: a factor of 0 means 1
    if stored.offset < (0 if is_pair else size):
        raise DataError("voxels start inside the header", file=path, received=stored.offset, expected=f">= {size}")
    return stored


def _parse_mgh(head: bytes, path: Path) -> _Stored:
    """Parse the header of FreeSurfer's format: big-endian, RAS, voxels from byte 284."""
    if len(head) < _MGH_HEADER_BYTES or not head.startswith(_MGH_VERSION):
        raise DataError("not an MGH file", file=path)
    try:
        header = MGHHeader(head[:_MGH_HEADER_BYTES], check=False)
        dtype = np.dtype(header.get_data_dtype()).newbyteorder(">")
        shape = tuple(int(n) for n in header["dims"])
    except _DAMAGED as error:
        raise DataError(f"damaged MGH header: {error}", file=path) from error
    is_placed = int.from_bytes(head[_MGH_PLACED : _MGH_PLACED + 2], "big") == 1
    return _Stored("mgh", dtype, shape, _MGH_HEADER_BYTES, partial(_place_mgh, header, is_placed))


def _record(stored: _Stored, path: Path, options: ReadOptions) -> tuple[ReadRecord, tuple[int, ...]]:
    """Check what the formats have in common; return the record and the axes of length one to drop."""
    if stored.dtype.kind not in "iufb" or stored.dtype.itemsize > 8:
        expected = "integers or floats up to 64 bits"
        raise DataError("unsupported voxel type", file=path, received=str(stored.dtype), expected=expected)
    if len(stored.shape) < 2 or min(stored.shape) < 1:
        raise DataError("header has an empty or missing axis", file=path, received=stored.shape)
    channels = _channels(stored.shape, path, options.channels)
    try:
        affine, warnings = stored.place(stored.shape[:3], options.form)
        geometry = Geometry(affine, stored.shape[:3])
    except GeometryError as error:
        raise error.at(path) from error
    dtype = stored.dtype.newbyteorder("=").name
    record = ReadRecord(path, stored.format, geometry, channels, dtype, (*warnings, *stored.warnings))
    return record, tuple(axis for axis in range(3, len(stored.shape)) if stored.shape[axis] == 1)


def _channels(stored: tuple[int, ...], path: Path, expected: int | None) -> int:
    """Return the number of channels: that of ``(x, y, z, c)``, and of ``(x, y, z, 1, c)``, the layout of vectors."""
    beyond = [n for n in stored[3:] if n > 1]
    if not beyond:
        return 1
    if len(beyond) > 1:
        raise DataError("volume has more than four axes", file=path, received=stored)
    if expected is None:
        remedy = "declare it by `channels`, or split the file into volumes"
        raise DataError("volume has a fourth axis that is not declared", file=path, received=stored, remedy=remedy)
    if expected != beyond[0]:
        raise DataError("wrong number of channels", file=path, received=beyond[0], expected=expected)
    return beyond[0]


def _nifti_warnings(header: Any) -> tuple[str, ...]:
    slope = float(header["scl_slope"])
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) & _SPATIAL_UNITS)
    ignored = () if np.isfinite(slope) else (f"scl_slope {slope} ignored",)
    return ignored if unit is None else (*ignored, f"header claims {unit}; lengths are taken as mm")


def _spacing_only(spacing: npt.ArrayLike) -> Placement:
    lengths = list(map(float, np.asarray(spacing)))
    return np.diag([*lengths, *[1.0] * (4 - len(lengths))]), ("placement ignored: spacing only",)


def _place_mgh(header: MGHHeader, is_placed: bool, shape: tuple[int, ...], form: Form) -> Placement:
    if not is_placed:
        raise GeometryError("header has neither spacing nor orientation")
    return _spacing_only(header["delta"]) if form == "pixdim" else (np.array(header.get_affine(), np.float64), ())


def _place_analyze(header: nib.Spm2AnalyzeHeader, shape: tuple[int, ...], form: Form) -> Placement:
    if form != "pixdim":
        raise GeometryError("Analyze 7.5 does not define which side is left", remedy=_SPACING_IS_ENOUGH)
    return _spacing_only(header["pixdim"][1 : len(shape) + 1])


def _place_nifti(header: Any, shape: tuple[int, ...], form: Form) -> Placement:
    n_axes = len(shape)
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)[1 : n_axes + 1]
    sform = np.asarray(header.get_sform(), dtype=np.float64) if int(header["sform_code"]) > 0 else None
    has_qform = int(header["qform_code"]) > 0
    if form == "sform":
        if sform is None:
            raise GeometryError("header has no sform", remedy=_SPACING_IS_ENOUGH)
        return sform, ()
    if form == "agree" and sform is None and not has_qform:
        raise GeometryError("header has neither sform nor qform", remedy=_SPACING_IS_ENOUGH)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        remedy = None if sform is None else "pass --form sform if that is right"
        raise GeometryError("pixdim must be positive", received=pixdim.tolist(), remedy=remedy)
    if form == "pixdim":
        return _spacing_only(pixdim)
    if not has_qform:
        if form == "qform" or sform is None:
            raise GeometryError("header has no qform", remedy="pass --form sform or --form pixdim")
        spacing = np.linalg.norm(sform[:3, :n_axes], axis=0)
        if np.allclose(spacing, pixdim, rtol=PIXDIM_TOLERANCE):
            return sform, ()
        return sform, (f"sform used; pixdim {_by_axis(pixdim)} differs from its spacing {_by_axis(spacing)}",)
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except _DAMAGED as error:
        raise GeometryError(f"qform cannot be used: {error}", remedy="pass --form sform") from error
    if sform is None or form == "qform":
        return qform, ()
    first, second = Geometry(sform, shape), Geometry(qform, shape)
    if first.is_close(second) or _is_rounded_from(header, sform):
        return sform, ()
    received = f"{first.corner_distance_mm(second):.3g} mm apart at a corner"
    raise GeometryError("sform and qform disagree", received=received, remedy="pass --form sform or --form qform")


def _is_rounded_from(header: nib.Nifti1Header, sform: npt.NDArray[np.float64]) -> bool:
    """Return whether the qform is the sform, converted to a qform.

    The header omits a = sqrt(1 - b^2 - c^2 - d^2) of a unit quaternion. Near a half turn, which separates RAS and LPS,
    a takes most of the rounding: corners of a large scan that is slightly oblique move by half a millimetre.
    """
    expected = header.copy()
    try:
        expected.set_qform(sform, code=1, strip_shears=False)
    except _DAMAGED:
        return False
    turns = [np.array([h[f"quatern_{part}"] for part in "bcd"], dtype=np.float64) for h in (header, expected)]
    difference = min(np.abs(turns[0] - turns[1]).max(), np.abs(turns[0] + turns[1]).max())  # q and -q are one turn
    first, second = ([float(h[f"qoffset_{axis}"]) for axis in "xyz"] for h in (header, expected))
    return bool(
        difference <= QUATERNION_ROUNDING
        and float(header["pixdim"][0]) == float(expected["pixdim"][0])
        and np.allclose(header["pixdim"][1:4], expected["pixdim"][1:4], rtol=FLOAT32_ROUNDING, atol=0)
        and np.allclose(first, second, rtol=FLOAT32_ROUNDING, atol=1e-4)
    )


def _by_axis(values: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{value:g}" for value in values)
