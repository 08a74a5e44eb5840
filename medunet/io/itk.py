"""NRRD, MetaImage and 3D Slicer's `.seg.nrrd` through SimpleITK, after the voxel data are verified."""

import math
import mmap
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lazy_loader
import numpy as np
import numpy.typing as npt

from medunet.errors import DataError, GeometryError, SecurityError
from medunet.geometry import Geometry

from .layout import copy_in_order
from .limits import inflated_length, open_for_reading, require_content, require_memory
from .options import DEFAULTS, Form, ReadOptions
from .record import ReadRecord
from .segments import Segment
from .structures import Painting, Structure, paint_voxels

sitk: Any = lazy_loader.load("SimpleITK")  # the other formats work without it

NRRD_SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")
ITK_SUFFIXES = (*NRRD_SUFFIXES, *META_SUFFIXES)
SEG_NRRD_SUFFIX = ".seg.nrrd"  # a label map whose header names and colours its labels

_HEADER_BYTES = 1 << 20  # text headers are shorter
_LONGEST_NAME = 255  # characters of a data file's name; readers in C cut longer ones, and open another file

# Fields of NRRD and MetaImage that decide how voxels are read and placed; each may occur once.
_FIELDS = (
    *("encoding", "datafile", "lineskip", "byteskip", "space", "spacedirections", "spacings"),
    *("binarydata", "compresseddata", "elementdatafile", "headersize", "elementspacing", "elementsize"),
)

# The spaces that ITK converts; it reads every other one as left-posterior-superior.
_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")

_NRRD_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")  # an empty line; a return alone ends a line for ITK
_META_END = re.compile(rb"^ElementDataFile[^\r\n]*(\r?\n|$)", re.MULTILINE)
_NRRD_DATA = re.compile(rb"^data ?file\s*:\s*(.*)$", re.IGNORECASE | re.MULTILINE)
_META_DATA = re.compile(rb"ElementDataFile[^=:]*[=:]([^\r\n]*)")  # MetaIO accepts `:` for `=`
_LIST = re.compile(r"LIST( +\d+D?)?")
_NUMBERED = re.compile(r"[^%]*%\d*d[^%]*")  # a pattern of file names; ITK hands it to C's `sprintf` as it is

_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_ANATOMY = "Anatomic codes - DICOM master list"

_META_WBITS = 47  # for zlib: a zlib or a gzip stream, whichever the data start with. MetaIO accepts both
_GZIP_WBITS = 31


def read_itk(path: Path, options: ReadOptions = DEFAULTS) -> tuple[npt.NDArray[np.float32], ReadRecord]:
    """Read NRRD, MHA or MHD as ``(x, y[, z])``, with a leading axis of channels for vector images, and its record."""
    header = open_header(path)
    record = _record(header, options)
    require_memory(record.geometry.shape, record.channels, path)
    image = read_verified(header)
    voxels = copy_in_order(sitk.GetArrayViewFromImage(image).T, dtype=np.float32)  # from z first
    if not np.isfinite(voxels).all():
        raise DataError("voxels are NaN or infinite", file=path)
    return voxels, record


def read_itk_header(path: Path, options: ReadOptions = DEFAULTS) -> ReadRecord:
    """Return the record of `read_itk` without reading the voxels."""
    return _record(open_header(path), options)


class TextHeader(NamedTuple):
    """A NRRD or MetaImage header: `fields` by name in lower case without spaces; `start` of voxels in the same file."""

    path: Path
    itk: Any  # a sitk.ImageFileReader that has read the header
    fields: dict[str, str]
    start: int

    @property
    def is_nrrd(self) -> bool:
        """Whether the header is NRRD."""
        return self.path.suffix.lower() in NRRD_SUFFIXES


def open_header(path: Path) -> TextHeader:
    """Read a header with the ITK parser that the file's name selects, whatever its content claims."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    header = TextHeader(path, reader, {}, 0)
    require_content(path)
    with open_for_reading(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _refuse_foreign_data(header, content)
        head = content[:_HEADER_BYTES]
    end = (_NRRD_END if header.is_nrrd else _META_END).search(head)
    text = head if end is None else head[: end.end()]
    for line in re.split(r"[\r\n]+", text.decode("latin-1")):
        name, _, value = line.partition(":") if header.is_nrrd else re.sub("[=:]", "=", line, count=1).partition("=")
        if header.is_nrrd and (value.startswith("=") or line.startswith("#")):
            continue  # NRRD's key/value pairs and comments
        name = name.strip().lower().replace(" ", "")
        if name in header.fields and name in _FIELDS:
            raise DataError("header has a duplicate field", file=path, received=name)
        header.fields[name] = value.strip()
    reader.SetImageIO("NrrdImageIO" if header.is_nrrd else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return header._replace(start=len(text))


def _refuse_foreign_data(header: TextHeader, content: mmap.mmap) -> None:
    """Reject a header that takes its voxels from outside its folder, which could be any file of the machine.

    MetaIO's rules for skipping fields are not repeated here: every name that it could use is checked, wherever it is.
    """
    if header.is_nrrd:
        text: Any = re.sub(rb"\r\n?", b"\n", content[:_HEADER_BYTES])
        end = text.find(b"\n\n")
        matches = list(_NRRD_DATA.finditer(text, 0, len(text) if end < 0 else end))
        has_end = end >= 0 or len(content) <= _HEADER_BYTES
    else:
        text, matches = content, list(_META_DATA.finditer(content))
        has_end = 0 <= content.find(b"ElementDataFile") < _HEADER_BYTES
    names = [match[1] for match in matches]
    for match in matches:
        if match[1].strip().upper().startswith(b"LIST"):  # the names follow
            names += text[match.end() :].splitlines()
            has_end = has_end and len(content) <= _HEADER_BYTES
    if not has_end:
        raise DataError("cannot be read: its header has no end", file=header.path)
    folder = header.path.parent.resolve()
    for name in (os.fsdecode(name.strip()) for name in names):
        is_plain = not name or _LIST.fullmatch(name) or (name.upper() == "LOCAL" and not header.is_nrrd)
        if not is_plain and _is_outside(name, folder):
            cause = "header takes its voxels from outside of its folder"
            raise SecurityError(cause, file=header.path, received=repr(name)[:200])


def _is_outside(name: str, folder: Path) -> bool:
    """Return whether a name could lead out of a folder, or to something other than a plain file."""
    if "\0" in name or len(name) > _LONGEST_NAME or ("%" in name and not _NUMBERED.fullmatch(name)):
        return True
    if "%" in name and (".." in name or Path(name).is_absolute()):
        return True
    target = (folder / name.partition("%")[0]).resolve()
    outside = target != folder and folder not in target.parents
    return outside or (target.exists() and not (target.is_file() or target.is_dir()))


def _record(header: TextHeader, options: ReadOptions) -> ReadRecord:
    name = sitk.GetPixelIDValueAsString(header.itk.GetPixelID())
    if "complex" in name:
        raise DataError("complex voxels are not supported", file=header.path, received=name)
    geometry = itk_geometry(header.itk, header.path)
    warnings = check_placement(header, form=options.form)
    if options.form == "pixdim":
        geometry = Geometry(np.diag([*np.linalg.norm(geometry.affine[:3, :3], axis=0), 1.0]), geometry.shape)
    kind, channels = header.path.suffix.lower().lstrip("."), header.itk.GetNumberOfComponents()
    return ReadRecord(header.path, kind, geometry, channels, name, warnings)


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


def check_placement(header: TextHeader, *, form: Form = "agree") -> tuple[str, ...]:
    """Reject a header without spacing or orientation, because ITK would assume 1 mm and LPS; return warnings.

    The form 'pixdim' accepts a header without orientation.
    """
    fields = header.fields
    has_directions = "spacedirections" in fields
    if header.is_nrrd:
        has_spacing = has_directions or "spacings" in fields
        has_space = fields.get("space", "").lower().removesuffix("-time") in _SPACES
        is_placed = has_directions and (has_space or header.itk.GetDimension() == 2)
    else:
        has_spacing = is_placed = not fields.keys().isdisjoint(("elementspacing", "elementsize"))
    if not has_spacing:
        raise GeometryError("header has no spacing", file=header.path)
    if form == "pixdim":
        return ("placement ignored: spacing only",)
    if not is_placed:
        raise GeometryError(
            "header has no orientation in a patient",
            file=header.path,
            received=f"space {fields.get('space')!r}" if has_directions else "no space directions",
            expected="space directions in " + ", ".join(_SPACES[:3]),
            remedy="pass --form pixdim if the spacing alone is enough",
        )
    return ()


def read_verified(header: TextHeader) -> Any:
    """Read an image after checking that its data have the length that the header needs and match their checksum.

    ITK verifies neither: a damaged stream gives wrong voxels, and a short one leaves memory uninitialised.
    """
    itk = header.itk
    bits = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(itk.GetPixelID()))
    if bits is None:
        raise DataError("voxel type is not supported", file=header.path)
    _verify_data(header, math.prod(itk.GetSize()) * itk.GetNumberOfComponents() * int(bits[1]) // 8)
    try:
        return sitk.ReadImage(str(header.path), imageIO=itk.GetImageIO())
    except RuntimeError as error:
        raise _unreadable(header.path, error) from error


def _verify_data(header: TextHeader, needed: int) -> None:
    """Check that the data are `needed` bytes long and that a compressed stream is intact."""
    fields, path = header.fields, header.path
    if header.is_nrrd:
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
            raise DataError("compressed voxels must be in one file", file=path)
        return
    data = path.parent / name if name else path
    start = 0 if name else header.start
    with open_for_reading(data) as file:
        length = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        if wbits is not None:
            length = inflated_length(file, wbits, needed, data, is_last=True)
    if length < needed or (is_exact and length > needed):
        word, least = ("shorter", "") if length < needed else ("longer", "more than ")
        received = f"{least}{min(length, needed)} bytes of voxels"
        cause = f"file is {word} than its header says"
        raise DataError(cause, file=data, received=received, expected=f"{needed} bytes")


def _unreadable(path: Path, error: RuntimeError) -> DataError:
    """Return an error with the last line of ITK's message, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return DataError(f"cannot be read: {lines[-1] if lines else 'unknown cause'}", file=path)


def segment_fields(voxels: npt.NDArray[Any], segments: Sequence[Segment]) -> dict[str, str]:
    """Return the fields of a header that Slicer reads, for one layer of voxels ``(x, y, z)``."""
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for index, segment in enumerate(segments):
        category, kind = (f"{c.scheme}^{c.value}^{c.meaning}" for c in (segment.category, segment.type))
        indices = np.nonzero(voxels == segment.value)
        terminology = f"{_CONTEXT}~{category}~{kind}~^^~{_ANATOMY}~^^~^^"
        values = {
            "ID": f"Segment_{segment.value}",
            "Name": segment.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part / 255:.6g}" for part in segment.color),
            "ColorAutoGenerated": "0",
            "LabelValue": str(segment.value),
            "Layer": "0",
            "Extent": " ".join(f"{side.min()} {side.max()}" if side.size else "0 -1" for side in indices),
            "Tags": f"Segmentation.Status:inprogress|TerminologyEntry:{terminology}|",
        }
        fields |= {f"Segment{index}_{key}": value for key, value in values.items()}
    return fields


def read_seg_nrrd(path: Path) -> list[Structure]:
    """Return the segments of a `.seg.nrrd` of one layer or several; none if its header names none."""
    header = open_header(path)
    require_memory(header.itk.GetSize(), header.itk.GetNumberOfComponents(), path)
    check_placement(header)
    fields = {key: header.itk.GetMetaData(key) for key in header.itk.GetMetaDataKeys()}
    structures: list[Structure] = []
    while (prefix := f"Segment{len(structures)}_") + "ID" in fields:
        layer, value = int(fields.get(f"{prefix}Layer", 0)), int(fields.get(f"{prefix}LabelValue", 1))
        name = fields.get(f"{prefix}Name", fields[f"{prefix}ID"])
        structures.append(Structure(name, len(structures) + 1, partial(_paint, header, layer, value)))
    return structures


def _paint(header: TextHeader, layer: int, value: int, reference: Geometry) -> Painting:
    image = read_verified(header)
    voxels = sitk.GetArrayViewFromImage(image)
    voxels = voxels[..., layer] if image.GetNumberOfComponentsPerPixel() > 1 else voxels
    indices, target = np.stack(np.nonzero(voxels == value)[::-1]), np.zeros(reference.shape, dtype=bool)
    paint_voxels(indices, itk_geometry(image, header.path), target, reference, file=header.path)
    return Painting(target)
