"""Volumes and segmentations as NRRD files, by numpy alone."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {
    "signed char": "i1",
    "int8": "i1",
    "unsigned char": "u1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "unsigned short": "u2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "unsigned int": "u4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "double": "f8",
}
_NAMES = {code: name for name, code in _TYPES.items() if name[-1].isdigit() or name in ("float", "double")}
_TO_RAS = {"left-posterior-superior": (-1, -1, 1), "right-anterior-superior": (1, 1, 1)}


class NrrdError(Exception):
    """A file that cannot be read, with its name and the reason."""


@dataclass(frozen=True)
class SegmentInfo:
    """One label of a segmentation.

    Args:
        name: for people.
        value: in the voxels.
        color: red, green, blue, 0 to 1.
    """

    name: str
    value: int
    color: tuple[float, float, float] = (0.9, 0.62, 0.0)


@dataclass(frozen=True)
class NrrdVolume:
    """Voxels and where they lie.

    Args:
        array: ``(k, j, i)``, as Slicer's arrays have them.
        ijk_to_ras: 4x4, mm.
        segments: labels that the file names, in the order of the file.
    """

    array: np.ndarray[Any, Any]
    ijk_to_ras: np.ndarray[Any, Any]
    segments: tuple[SegmentInfo, ...] = field(default=())


def write_nrrd(path: Path, volume: NrrdVolume) -> Path:
    """Write an image; segments are not written.

    Raises:
        NrrdError: not a volume of numbers.
    """
    array = np.ascontiguousarray(volume.array)
    if array.dtype.kind == "i" and array.dtype.itemsize == 8:
        array = array.astype(np.int32)
    code = f"{array.dtype.kind}{array.dtype.itemsize}"
    if array.ndim != 3 or code not in _NAMES:
        raise NrrdError(f"{path}: not a volume of numbers (received {array.dtype} {array.shape})")
    vectors = [_vector(volume.ijk_to_ras[:3, axis]) for axis in range(3)]
    lines = [
        "NRRD0004",
        f"type: {_NAMES[code]}",
        "dimension: 3",
        "space: right-anterior-superior",
        f"sizes: {' '.join(str(n) for n in array.shape[::-1])}",
        f"space directions: {' '.join(vectors)}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(volume.ijk_to_ras[:3, 3])}",
    ]
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    path.write_bytes("\n".join([*lines, "", ""]).encode() + gzip.compress(data, compresslevel=1))
    return path


def read_nrrd(path: Path) -> NrrdVolume:
    """Read a volume or a segmentation of one layer.

    Raises:
        NrrdError: another file, a broken one, or one with several layers.
    """
    content = path.read_bytes()
    head, _, data = content.partition(b"\n\n")
    fields, values = _header(head, path)
    try:
        kind = np.dtype("<" + _TYPES[fields["type"]])
        if fields.get("endian") == "big":
            kind = kind.newbyteorder(">")
        sizes = [int(word) for word in fields["sizes"].split()]
        encoding = fields["encoding"]
        signs = np.array(_TO_RAS[fields["space"]], dtype=float)
        directions = [_numbers(word) for word in fields["space directions"].split()]
        origin = _numbers(fields["space origin"])
        data = gzip.decompress(data) if encoding in ("gzip", "gz") else data
        array = np.frombuffer(data, kind).reshape(sizes[::-1])
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise NrrdError(f"{path}: is no readable NRRD volume ({error})") from error
    if array.ndim != 3 or encoding not in ("gzip", "gz", "raw"):
        raise NrrdError(f"{path}: expected a volume of one layer, gzip or raw (received {sizes}, {encoding})")
    matrix = np.eye(4)
    for axis in range(3):
        matrix[:3, axis] = signs * directions[axis]
    matrix[:3, 3] = signs * origin
    return NrrdVolume(array, matrix, _segments(values))


def _header(head: bytes, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    lines = head.decode("utf-8", errors="replace").splitlines()
    if not lines or not lines[0].startswith("NRRD"):
        raise NrrdError(f"{path}: is no NRRD file")
    fields: dict[str, str] = {}
    values: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("#"):
            continue
        if ":=" in line:
            key, _, value = line.partition(":=")
            values[key] = value.replace("\\n", "\n").replace("\\\\", "\\")
        else:
            key, _, value = line.partition(": ")
            fields[key] = value.strip()
    return fields, values


def _segments(values: dict[str, str]) -> tuple[SegmentInfo, ...]:
    found: list[SegmentInfo] = []
    while f"Segment{len(found)}_ID" in values:
        key = f"Segment{len(found)}_"
        color = [float(word) for word in values.get(f"{key}Color", "0.9 0.62 0").split()]
        name = values.get(f"{key}Name", values[f"{key}ID"])
        found.append(SegmentInfo(name, int(values.get(f"{key}LabelValue", 1)), (color[0], color[1], color[2])))
    return tuple(found)


def _vector(numbers: np.ndarray[Any, Any]) -> str:
    return f"({','.join(repr(float(number + 0.0)) for number in numbers)})"


def _numbers(text: str) -> np.ndarray[Any, Any]:
    return np.array([float(word) for word in text.strip("()").split(",")])
