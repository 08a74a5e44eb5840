"""Files that are plain, gzipped or packed by bzip2: the header first, then a checked read of the voxels."""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import BinaryIO

from medunet.errors import DataError, SecurityError

from .deflate import GZIP_MAGIC, LARGEST_EXCESS, MAX_RATIO, gunzip
from .limits import open_for_reading, require_content

_BZIP2_MAGIC = b"BZh"
_COPY_AGAIN = "copy it again from its source"

_LONGEST_HEADER = 2048
"""Bytes that are unpacked for the header; NIfTI-2 has the longest one, 540 bytes."""

_HEAD_BYTES = 1 << 16

_BZIP2_BLOCK_BYTES = 1 << 20
"""Nothing can be unpacked before the whole first block is there, which has up to 900,000 bytes."""


class PackedFile:
    """A plain, gzipped or bzip2 file.

    Args:
        path: the file. `head` has its first bytes, unpacked.

    Raises:
        DataError: unreadable, empty, damaged, or not packed in spite of its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require_content(path)
        with open_for_reading(path) as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(_BZIP2_MAGIC):
                head += file.read(_BZIP2_BLOCK_BYTES)
        self.size = path.stat().st_size
        self.gzipped, self.bzipped = head.startswith(GZIP_MAGIC), head.startswith(_BZIP2_MAGIC)
        name = path.name.lower()
        for is_packed, kind, suffix, plain in (
            (self.gzipped, "gzip", ".gz", ""),
            (self.gzipped, "gzip", ".mgz", ".mgh"),
            (self.bzipped, "bzip2", ".bz2", ""),
        ):
            if name.endswith(suffix) and not is_packed:
                renamed = path.name[: -len(suffix)] + plain
                raise DataError(f"not a {kind} file in spite of its name", file=path, remedy=f"rename it to {renamed}")
        try:
            if self.gzipped:
                head = zlib.decompressobj(wbits=31).decompress(head, _LONGEST_HEADER)
            elif self.bzipped:
                head = bz2.BZ2Decompressor().decompress(head, _LONGEST_HEADER)
        except (zlib.error, OSError) as error:
            raise DataError(f"damaged compressed file: {error}", file=path, remedy=_COPY_AGAIN) from error
        self.head = head

    def require(self, needed: int) -> None:
        """Reject a file that cannot unpack to so many bytes."""
        bound = self.size * MAX_RATIO if self.gzipped else self.size
        if needed > bound and not self.bzipped:
            raise DataError(
                "file is shorter than its header says",
                file=self.path,
                received=f"{self.size} bytes",
                expected=f"{needed} bytes",
                remedy="copy it again from its source",
            )

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Return `nbytes` from `offset` of the unpacked file, after its length and checksum are verified."""
        needed = offset + nbytes
        with open_for_reading(self.path) as file:
            if self.bzipped:
                data = _bunzip(file, needed, self.path)
            else:
                content = file.read()
                data = gunzip(content, wanted=needed, file=self.path) if self.gzipped else memoryview(content)
        if len(data) < needed:
            raise DataError(
                "file is shorter than its header says",
                file=self.path,
                received=f"{len(data)} bytes",
                expected=f"{needed} bytes",
                remedy="copy it again from its source",
            )
        return data[offset:needed]


def _bunzip(file: BinaryIO, wanted: int, path: Path) -> memoryview:
    """Return so many bytes of a bzip2 file, or fewer if it has no more, after all its checksums are verified."""
    try:
        with bz2.open(file) as unpacked:
            data, excess = unpacked.read(wanted), 0
            while piece := unpacked.read(_BZIP2_BLOCK_BYTES):
                excess += len(piece)
                if excess > LARGEST_EXCESS:
                    raise SecurityError(
                        "bzip2 file unpacks to more than its header says", file=path, remedy=_COPY_AGAIN
                    )
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"damaged bzip2 file: {error}", file=path, remedy=_COPY_AGAIN) from error
    return memoryview(data)
