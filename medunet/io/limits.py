"""What a header may ask for: no more memory than there is, no file outside of its folder, no bomb."""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from medunet.errors import DataError, SecurityError

try:
    import resource as _resource
except ImportError:  # Windows
    resource: Any = None
else:
    resource = _resource

VOXEL_BYTES = 4
"""Voxels are read into float32."""

BOMB_BYTES, BOMB_RATIO = 64 << 20, 100
"""A deflated DICOM file that unpacks to more than both (bytes, and times its size) is a bomb; slices shrink tenfold."""

_META_START, _META_GROUP, _TRANSFER_SYNTAX = 132, b"\2\0", b"\x10\0"
_LONG_VRS = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN")
"""Value representations with a length of four bytes, behind two that are reserved."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"

_PIECE = 1 << 20

_HEADER_BYTES = 1 << 20
"""Text headers are shorter."""

_DATA_FILE = {
    "nrrd": re.compile(rb"^data ?file\s*:\s*(.*)$", re.IGNORECASE | re.MULTILINE),
    "meta": re.compile(rb"^\s*ElementDataFile\s*=\s*(.*)$", re.IGNORECASE | re.MULTILINE),
}
"""The field that names where the voxels of a NRRD or MetaImage lie."""


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has, within the process's own limit."""
    free = int(psutil.virtual_memory().available + psutil.swap_memory().free)
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free = min(free, limit - psutil.Process().memory_info().vms)
    return max(free, 0)


def require_memory(shape: Sequence[int], channels: int, file: Path) -> None:
    """Refuse an image that cannot be held, before memory for it is reserved.

    Args:
        shape: of one channel.
        channels: how many.
        file: named in the error.

    Raises:
        DataError: it is larger than what is free.
    """
    needed = math.prod(map(int, shape)) * channels * VOXEL_BYTES
    if needed < _PIECE:
        return
    free = available_memory()
    if needed > free:
        raise DataError(
            "image is larger than the free memory",
            file=file,
            received=f"{'x'.join(map(str, shape))} voxels, {needed / 2**30:.3g} GiB",
            expected=f"at most {free / 2**30:.3g} GiB",
            remedy="if the header is right, crop the image or use a larger machine",
        )


def refuse_foreign_data(path: Path) -> None:
    """Refuse a NRRD or MetaImage header that takes its voxels from outside of its folder.

    Such a header would read any file of the machine, and a device without end.

    Raises:
        SecurityError: a data file that lies elsewhere or is no plain file.
        DataError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror or error}", file=path) from error
    whole = len(head) < _HEADER_BYTES
    kind = "nrrd" if head.startswith(b"NRRD") else "meta"
    if kind == "nrrd":
        head, *rest = re.split(rb"\r?\n\r?\n", head, maxsplit=1)
        whole = whole or bool(rest)
    found = _DATA_FILE[kind].search(head)
    if found is None:
        if kind == "meta" or not whole:
            raise DataError("cannot be read: its header has no end", file=path, remedy="copy it again from its source")
        return
    value = found[1].strip()
    if kind == "meta" and value.upper() == b"LOCAL":
        return
    lines = [value]
    if value.upper().startswith(b"LIST"):
        lines = [line.strip() for line in head[found.end() :].splitlines() if line.strip()]
    folder = path.parent.resolve()
    for line in lines:
        # a pattern (slice%03d.raw 1 9 1) is judged by its folder
        name = os.fsdecode(line.split(b"%")[0] if b"%" in line else line)
        target = (path.parent / name).resolve()
        outside = target != folder and folder not in target.parents
        if outside or (target.exists() and not (target.is_file() or target.is_dir())):
            raise SecurityError(
                "header takes its voxels from outside of its folder",
                file=path,
                received=name,
                remedy="put the data beside the header, or convert to one file",
            )


def refuse_deflate_bomb(file: BinaryIO, path: Path) -> None:
    """Refuse a deflated DICOM file that would fill the memory; pydicom unpacks it at once.

    Args:
        file: the open file; it is left at its beginning.
        path: named in errors.

    Raises:
        SecurityError: it unpacks to far more than images do.
        DataError: it is damaged.
    """
    try:
        start = _deflated_start(file)
        if start is None:
            return
        size = file.seek(0, os.SEEK_END)
        allowed = max(BOMB_BYTES, BOMB_RATIO * size)
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        file.seek(start)
        piece = file.read(_PIECE)
        while piece and not unpacker.eof:
            total += len(unpacker.decompress(piece, _PIECE))
            if total > allowed:
                raise SecurityError(
                    "deflated DICOM file unpacks to far more than images do",
                    file=path,
                    received=f"more than {allowed >> 20} MiB from {size} bytes",
                    remedy="export the series again",
                )
            piece = unpacker.unconsumed_tail or file.read(_PIECE)
    except zlib.error as error:
        raise DataError("damaged deflated data", file=path, remedy="export the series again") from error
    finally:
        file.seek(0)


def _deflated_start(file: BinaryIO) -> int | None:
    """Where the deflated part of a DICOM file begins, or None where nothing is deflated.

    The elements of group 2 in front of it: ``group element VR length value``, little endian.
    """
    file.seek(_META_START)
    deflated, place, head = False, _META_START, file.read(8)
    while head[:2] == _META_GROUP:
        long = head[4:6] in _LONG_VRS
        length = int.from_bytes(file.read(4) if long else head[6:8], "little")
        if head[2:4] == _TRANSFER_SYNTAX:
            deflated = file.read(length)[:64].rstrip(b"\0 ") == _DEFLATED
        else:
            file.seek(length, os.SEEK_CUR)
        place, head = file.tell(), file.read(8)
    return place if deflated else None
