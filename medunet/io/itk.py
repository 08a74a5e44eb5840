"""NRRD and MetaImage through SimpleITK, after the voxel data are verified against the header and their checksum."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .layout import copy_in_order
from .limits import HEADER_BYTES, open_for_reading, refuse_foreign_data, require_memory
from .options import DEFAULTS, Form, ReadOptions
from .record import ReadRecord

NRRD_SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")
ITK_SUFFIXES = (*NRRD_SUFFIXES, *META_SUFFIXES)

_FIELDS = (
    *("encoding", "datafile", "lineskip", "byteskip", "space", "spacedirections", "spacings"),
    *("binarydata", "compresseddata", "elementdatafile", "headersize", "elementspacing", "elementsize"),
)
"""Fields of NRRD and MetaImage that decide how voxels are read and placed; each may occur once."""

_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")
"""The spaces that ITK converts; it reads every other one as left-posterior-superior."""

_PIECE = 1 << 20
"""Bytes that are decompressed at a time to verify a checksum."""

_META_WBITS = 47
"""For zlib: a zlib or a gzip stream, whichever the data start with. MetaIO accepts both."""

_GZIP_WBITS = 31

_COPY_AGAIN = "copy it again from its source"


def read_itk(path: Path, options: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read NRRD, MHA or MHD.

    Args:
        path: the header, or the file with header and voxels.
        options: `form` is used: 'pixdim' accepts a header that has a spacing but no orientation.

    Returns:
        ``(x, y[, z])``, with a leading axis of channels for vector images, and the record in RAS.

    Raises:
        DataError: unreadable, damaged, more or fewer bytes than the header needs, or NaN voxels.
        GeometryError: missing or impossible placement.
        SecurityError: a header that takes its voxels from another folder.
    """
    record = read_itk_header(path, options)
    require_memory(record.geometry.shape, record.channels, path)
    return itk_voxels(read_verified(path), path), record


def read_itk_header(path: Path, options: ReadOptions = DEFAULTS) -> ReadRecord:
    """Return the record of `read_itk` without reading the voxels."""
    reader = open_header(path)
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in name:
        raise DataError("complex voxels are not supported", file=path, received=name)
    geometry = itk_geometry(reader, path)
    warnings = check_placement(path, n_axes=reader.GetDimension(), form=options.form)
    if options.form == "pixdim":
        geometry = Geometry(np.diag([*np.linalg.norm(geometry.affine[:3, :3], axis=0), 1.0]), geometry.shape)
    return ReadRecord(
        path=path,
        format=path.suffix.lower().lstrip("."),
        geometry=geometry,
        channels=reader.GetNumberOfComponents(),
        dtype=name,
        warnings=warnings,
    )


def open_header(path: Path) -> sitk.ImageFileReader:
    """Return a SimpleITK reader that has read the header.

    Raises:
        DataError: unreadable.
        SecurityError: the header takes its voxels from another folder.
    """
    refuse_foreign_data(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_image_io(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"cannot be read: {_last_line(error)}", file=path) from error
    return reader


def read_verified(path: Path) -> sitk.Image:
    """Read an image after its data have the length that the header needs and match their checksum.

    ITK verifies neither: a damaged stream gives wrong voxels, and a short one leaves memory uninitialised.

    Raises:
        DataError: damaged data, or more or fewer bytes than the header needs.
    """
    reader = open_header(path)
    bits = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    if bits is None:
        raise DataError("voxel type is not supported", file=path)
    needed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * int(bits[1]) // 8
    _verify_data(_Header.of(path), path, needed)
    try:
        return sitk.ReadImage(str(path), imageIO=_image_io(path))
    except RuntimeError as error:
        raise DataError(f"cannot be read: {_last_line(error)}", file=path) from error


def itk_geometry(image: Any, path: Path) -> Geometry:
    """Return the geometry in RAS of a `SimpleITK.Image`, or of a reader that has read the header."""
    n_axes = image.GetDimension()
    if n_axes not in (2, 3):
        raise GeometryError("an image has two or three axes", file=path, received=n_axes)
    direction = np.eye(3)
    direction[:n_axes, :n_axes] = np.reshape(image.GetDirection(), (n_axes, n_axes))
    try:
        return Geometry.from_lps(
            origin=(*image.GetOrigin(), 0.0)[:3],
            spacing=(*image.GetSpacing(), 1.0)[:3],
            direction=direction.ravel().tolist(),
            shape=image.GetSize(),
        )
    except GeometryError as error:
        raise error.at(path) from error


def itk_voxels(image: sitk.Image, path: Path) -> npt.NDArray[np.float32]:
    """Return the voxels in the order of the affine: SimpleITK's arrays count z first, ours x."""
    array = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
        array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    else:
        array = array.T
    voxels = copy_in_order(array, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise DataError("voxels are NaN or infinite", file=path)
    return voxels


@dataclass(frozen=True)
class _Header:
    """The fields of a text header, by name in lower case, and where data in the same file start."""

    fields: dict[str, str]
    start: int

    @classmethod
    def of(cls, path: Path) -> _Header:
        with open_for_reading(path) as file:
            head = file.read(HEADER_BYTES)
        is_nrrd = path.suffix.lower() in NRRD_SUFFIXES
        if is_nrrd:
            end = re.search(rb"\r?\n\r?\n", head)
        else:
            end = re.search(rb"^ElementDataFile[^\r\n]*(\r?\n|$)", head, re.MULTILINE)
        text = head if end is None else head[: end.end()]
        fields: dict[str, str] = {}
        for line in re.split(r"\r?\n", text.decode("latin-1")):
            if is_nrrd and (":=" in line or line.startswith(("#", "NRRD0"))):
                continue
            name, *value = re.split(":" if is_nrrd else "[=:]", line, maxsplit=1)
            name = name.strip().lower().replace(" ", "")
            if name in fields and name in _FIELDS:
                raise DataError("header has a field twice", file=path, received=name)
            fields[name] = value[0].strip() if value else ""
        return cls(fields, len(text))


def _verify_data(header: _Header, path: Path, needed: int) -> None:
    """Check that the data are `needed` bytes long and that a compressed stream is intact."""
    fields = header.fields
    if path.suffix.lower() in NRRD_SUFFIXES:
        encoding = fields.get("encoding", "").lower()
        name, wbits = fields.get("datafile", ""), _GZIP_WBITS if encoding in ("gzip", "gz") else None
        is_binary = wbits is not None or encoding == "raw"
        is_exact = all(fields.get(skip, "0") == "0" for skip in ("lineskip", "byteskip"))
    else:
        name = fields.get("elementdatafile", "")
        name = "" if name.upper() == "LOCAL" else name
        wbits = _META_WBITS if fields.get("compresseddata", "")[:1] in ("T", "t", "1") else None
        is_binary = wbits is not None or fields.get("binarydata", "True")[:1] in ("T", "t", "1")
        is_exact = fields.get("headersize", "0") == "0"
    if not is_binary:
        return
    if name.upper().startswith("LIST") or "%" in name:
        if wbits is not None:
            raise DataError(
                "compressed voxels in several files cannot be verified", file=path, remedy="convert to one file"
            )
        return
    data = path.parent / name if name else path
    start = 0 if name else header.start
    with open_for_reading(data) as file:
        size = file.seek(0, 2) - start
        file.seek(start)
        length = size if wbits is None else _inflated_length(file, wbits, needed, data)
    if length < needed or (is_exact and length > needed):
        raise DataError(
            f"file is {'shorter' if length < needed else 'longer'} than its header says",
            file=data,
            received=f"{length} bytes of voxels" if length <= needed else f"more than {needed} bytes of voxels",
            expected=f"{needed} bytes",
            remedy=_COPY_AGAIN,
        )


def _inflated_length(file: BinaryIO, wbits: int, needed: int, path: Path) -> int:
    """Return the length of a compressed stream whose checksum matches; stop once it is longer than needed."""
    unpacker, length = zlib.decompressobj(wbits), 0
    try:
        while not unpacker.eof and length <= needed:
            piece = unpacker.unconsumed_tail or file.read(_PIECE)
            part = unpacker.decompress(piece, _PIECE)
            if not piece and not part:
                raise DataError("compressed data are truncated", file=path, remedy=_COPY_AGAIN)
            length += len(part)
    except zlib.error as error:
        raise DataError(f"damaged compressed data: {error}", file=path, remedy=_COPY_AGAIN) from error
    if unpacker.eof and (unpacker.unused_data or file.read(1)):
        raise DataError("unknown data follow the compressed voxels", file=path, remedy=_COPY_AGAIN)
    return length


def check_placement(path: Path, *, n_axes: int, form: Form = "agree") -> tuple[str, ...]:
    """Reject a header without spacing or orientation, for which ITK assumes 1 mm and left-posterior-superior.

    Args:
        path: the header.
        n_axes: number of spatial axes.
        form: 'pixdim' accepts a header without orientation.

    Returns:
        Warnings.

    Raises:
        GeometryError: spacing or orientation is missing.
    """
    fields = _Header.of(path).fields
    if path.suffix.lower() in NRRD_SUFFIXES:
        has_directions = "spacedirections" in fields
        has_spacing = has_directions or "spacings" in fields
        has_space = fields.get("space", "").lower().removesuffix("-time") in _SPACES
        is_placed = has_directions and (has_space or n_axes == 2)
    else:
        has_spacing = is_placed = not fields.keys().isdisjoint(("elementspacing", "elementsize"))
    if not has_spacing:
        raise GeometryError(
            "header has no spacing", file=path, remedy="write it again with the spacing of the original image"
        )
    if form == "pixdim":
        return ("placement ignored: spacing only",)
    if not is_placed:
        raise GeometryError(
            "header has no orientation in a patient",
            file=path,
            received=f"space {fields.get('space')!r}" if has_directions else "no space directions",
            expected="space directions in " + ", ".join(_SPACES[:3]),
            remedy="pass --form pixdim if the spacing alone is enough",
        )
    return ()


def _image_io(path: Path) -> str:
    """Return the one of ITK's some thirty parsers that the name asks for, whatever the content claims."""
    return "NrrdImageIO" if path.suffix.lower() in NRRD_SUFFIXES else "MetaImageIO"


def _last_line(error: RuntimeError) -> str:
    """Return the last line of ITK's several, which holds the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown cause"
