"""Limits on what a file may request: free memory, paths that can be opened, and no decompression bombs."""

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from medunet.errors import DataError, SecurityError

try:
    import resource
except ImportError:  # Windows
    resource: Any = None  # type: ignore[no-redef]

VOXEL_BYTES = 4  # voxels are read into float32

# A deflated DICOM file that unpacks to more than both (bytes, and times its size) is a bomb; slices shrink tenfold.
BOMB_BYTES, BOMB_RATIO = 64 << 20, 100

_PIECE = 1 << 20
_META_START, _META_GROUP, _TRANSFER_SYNTAX = 132, b"\2\0", b"\x10\0"
_LONG_VRS = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN")  # value representations with a length of four bytes
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def available_memory() -> int:
    """Return the bytes that this process may still take: the machine's free memory, within the process's own limit."""
    free = int(psutil.virtual_memory().available + psutil.swap_memory().free)
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free = min(free, limit - psutil.Process().memory_info().vms)
    return max(free, 0)


def require_memory(shape: Sequence[int], channels: int, file: Path) -> None:
    """Raise a DataError if an image is larger than the free memory, before memory for it is reserved."""
    needed = math.prod(map(int, shape)) * channels * VOXEL_BYTES
    if needed >= _PIECE and needed > (free := available_memory()):
        received = f"{'x'.join(map(str, shape))} voxels, {needed / 2**30:.3g} GiB"
        expected = f"at most {free / 2**30:.3g} GiB"
        raise DataError("image is larger than the free memory", file=file, received=received, expected=expected)


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors about a path, such as a locked folder, into a DataError that names the path."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("does not exist", file=path) from error
    except (OSError, ValueError) as error:  # ValueError for a null character in the name
        raise DataError(f"cannot be opened: {getattr(error, 'strerror', None) or error}", file=path) from error


def require_reachable(path: Path) -> os.stat_result:
    """Return the status of a file or folder, or raise a DataError if the system does not find it."""
    with system_errors(path):
        return path.stat()


def require_content(path: Path) -> None:
    """Raise a DataError if a file is missing or empty."""
    if require_reachable(path).st_size == 0:
        raise DataError("file has zero bytes", file=path)


@contextmanager
def open_for_reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file; the system's errors in opening and reading become a DataError."""
    with system_errors(path), path.open("rb") as file:
        yield file


def inflated_length(file: BinaryIO, wbits: int, limit: int, path: Path, *, is_last: bool) -> int:
    """Unpack the stream at the file's position without keeping it, and return its length.

    `wbits` is that of `zlib.decompressobj`. Unpacking stops at a length greater than `limit`. A stream that is damaged,
    truncated or, with `is_last`, followed by other data is a DataError.
    """
    unpacker, length = zlib.decompressobj(wbits), 0
    try:
        while not unpacker.eof and length <= limit:
            piece = unpacker.unconsumed_tail or file.read(_PIECE)
            part = unpacker.decompress(piece, _PIECE)
            if not piece and not part:
                raise DataError("compressed data are truncated", file=path)
            length += len(part)
    except zlib.error as error:
        raise DataError(f"damaged compressed data: {error}", file=path) from error
    if is_last and unpacker.eof and (unpacker.unused_data or file.read(1)):
        raise DataError("unknown data follow the compressed data", file=path)
    return length


def refuse_deflate_bomb(file: BinaryIO, path: Path) -> None:
    """Reject a deflated DICOM file that would fill the memory, because pydicom unpacks it in one piece.

    The position of the file is reset to its start.
    """
    start = _deflated_start(file)
    if start is not None:
        size = file.seek(0, os.SEEK_END)
        allowed = max(BOMB_BYTES, BOMB_RATIO * size)
        file.seek(start)
        if inflated_length(file, -zlib.MAX_WBITS, allowed, path, is_last=False) > allowed:
            received = f"more than {allowed >> 20} MiB from {size} bytes"
            raise SecurityError("deflated DICOM file unpacks to an implausible size", file=path, received=received)
    file.seek(0)


def _deflated_start(file: BinaryIO) -> int | None:
    """Return where the deflated part of a DICOM file starts, or None if nothing is deflated.

    It follows the elements of group 2: ``group element VR length value``, little endian.
    """
    is_deflated, place = False, file.seek(_META_START)
    while (head := file.read(8))[:2] == _META_GROUP:
        length = int.from_bytes(file.read(4) if head[4:6] in _LONG_VRS else head[6:8], "little")
        if head[2:4] == _TRANSFER_SYNTAX:
            is_deflated = file.read(length)[:64].rstrip(b"\0 ") == _DEFLATED
            place = file.tell()
        else:
            place = file.seek(length, os.SEEK_CUR)
    return place if is_deflated else None
