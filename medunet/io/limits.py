"""What a header may ask for: no more memory than there is, no file outside of its folder, no bomb."""

from __future__ import annotations

import math
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

HEADER_BYTES = 1 << 20
"""Text headers are shorter."""

_LONGEST_NAME = 255
"""Characters of a data file's name; C's readers cut longer ones, so that they would read another file."""

_NRRD_FILE = re.compile(rb"^data ?file\s*:\s*(.*)$", re.IGNORECASE | re.MULTILINE)
_META_KEY, _META_FILE = b"ElementDataFile", re.compile(rb"ElementDataFile[^=:]*[=:]([^\r\n]*)")
"""The field that names where the voxels of a NRRD or MetaImage lie; MetaIO takes `:` for `=`, too."""

_LIST = re.compile(r"LIST( +\d+D?)?")
_NUMBERED = re.compile(r"[^%]*%\d*d[^%]*")
"""A pattern of file names; ITK hands it to C's `sprintf` as it is."""


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


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn what the system does not allow for a path, such as a locked folder, into a DataError that names the path."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("does not exist", file=path) from error
    except (OSError, ValueError) as error:  # ValueError for a null character in the name
        raise DataError(f"cannot be opened: {getattr(error, 'strerror', None) or error}", file=path) from error


def require_reachable(path: Path) -> os.stat_result:
    """Return what the system knows about a file or folder.

    Raises:
        DataError: it does not exist or cannot be reached, or its name is too long or has a null character.
    """
    with system_errors(path):
        return path.stat()


def require_content(path: Path) -> None:
    """Reject a file that does not exist, cannot be reached or is empty.

    Raises:
        DataError: as above.
    """
    if require_reachable(path).st_size == 0:
        raise DataError("file has zero bytes", file=path, remedy="copy it again from its source")


@contextmanager
def open_for_reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read it; what the system or the file's name does not allow is a typed error.

    Raises:
        DataError: it cannot be opened or read.
    """
    with system_errors(path), path.open("rb") as file:
        yield file


def refuse_foreign_data(path: Path) -> None:
    """Refuse a NRRD or MetaImage header that takes its voxels from outside of its folder.

    Such a header would read any file of the machine, and a device without end.

    Raises:
        SecurityError: a data file that lies elsewhere or is no plain file.
        DataError: the file cannot be opened.
    """
    files = _nrrd_files if path.suffix.lower() in (".nrrd", ".nhdr") else _meta_files
    require_content(path)
    with open_for_reading(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = [os.fsdecode(text) for value in files(content, path) if (text := value.strip())]
    folder = path.parent.resolve()
    for name in names:
        if not _LIST.fullmatch(name) and _is_outside(name, folder):
            raise SecurityError(
                "header takes its voxels from outside of its folder",
                file=path,
                received=repr(name)[:200],
                remedy="put the data beside the header, or convert to one file",
            )


def _nrrd_files(content: mmap.mmap, path: Path) -> Iterator[bytes]:
    # a return alone ends a line for ITK
    text = re.sub(rb"\r\n?", b"\n", content[:HEADER_BYTES])
    head, end, _ = text.partition(b"\n\n")
    if not end and len(content) > HEADER_BYTES:
        raise _endless(path)
    for found in _NRRD_FILE.finditer(head):
        yield found[1]
        if found[1].strip().upper().startswith(b"LIST"):  # it goes on behind an empty line
            if len(content) > HEADER_BYTES:
                raise _endless(path)
            yield from text[found.end() :].splitlines()


def _meta_files(content: mmap.mmap, path: Path) -> Iterator[bytes]:
    """Whatever MetaIO could take for the name, wherever it stands: which fields it skips is for it alone to know."""
    place = content.find(_META_KEY)
    if not 0 <= place < HEADER_BYTES:
        raise _endless(path)
    while place >= 0:
        found = _META_FILE.match(content, place)
        if found is not None and found[1].strip().upper() != b"LOCAL":
            yield found[1]
            if found[1].strip().upper().startswith(b"LIST"):
                if len(content) - found.end() > HEADER_BYTES:
                    raise _endless(path)
                yield from content[found.end() :].splitlines()
        place = content.find(_META_KEY, place + len(_META_KEY))


def _is_outside(name: str, folder: Path) -> bool:
    """Whether a name could lead out of a folder, or to what is no plain file; a pattern is judged by its words."""
    if "\0" in name or len(name) > _LONGEST_NAME or ("%" in name and not _NUMBERED.fullmatch(name)):
        return True
    if "%" in name and (".." in name or Path(name).is_absolute()):
        return True
    target = (folder / name.partition("%")[0]).resolve()
    outside = target != folder and folder not in target.parents
    return outside or (target.exists() and not (target.is_file() or target.is_dir()))


def _endless(path: Path) -> DataError:
    return DataError("cannot be read: its header has no end", file=path, remedy="copy it again from its source")


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
        if not unpacker.eof:
            raise DataError("deflated data are truncated", file=path, remedy="export the series again")
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
