"""Compressed files: read with every checksum verified, written in parallel pieces."""

import bz2
import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from typing_extensions import Buffer

from medunet.errors import DataError, SecurityError

from .limits import open_for_reading, require_content

MAX_RATIO = 1032  # times that a deflate stream can grow at most (RFC 1951)
LARGEST_EXCESS = 64 << 20  # bytes behind the image that are unpacked to verify the checksum; a file with more is a bomb

_GZIP_MAGIC, _BZIP2_MAGIC = b"\x1f\x8b", b"BZh"
_PACKED_SUFFIXES = {".gz": ("gzip", ""), ".mgz": ("gzip", ".mgh"), ".bz2": ("bzip2", "")}  # format, plain suffix

_LONGEST_HEADER = 2048  # bytes of an image header; NIfTI-2 has the longest one, 540 bytes
_HEAD_BYTES = 1 << 16
_BZIP2_BLOCK_BYTES = 1 << 20  # nothing can be unpacked before the whole first block, of up to 900,000 bytes, is there
_SKIM_BYTES = 1 << 20
_SLACK_BYTES = 1 << 20  # libdeflate unpacks a whole file in one call, if it is at most this much larger than wanted

_LEVEL = 1  # zlib's fastest level: label maps shrink a hundredfold at any level
_PIECE_BYTES = 4 << 20  # does not depend on the number of threads, so equal data give equal files
_THREADS = min(8, os.cpu_count() or 1)  # zlib releases the GIL; more than eight threads wait for memory
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # deflate, without name and time


class PackedFile:
    """A plain, gzip or bzip2 file, recognised by its content; `head` has its first bytes, unpacked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require_content(path)
        with open_for_reading(path) as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(_BZIP2_MAGIC):
                head += file.read(_BZIP2_BLOCK_BYTES)
        self.size = path.stat().st_size
        self.packing = {_GZIP_MAGIC: "gzip", _BZIP2_MAGIC[:2]: "bzip2"}.get(head[:2], "")
        expected, plain = _PACKED_SUFFIXES.get(path.suffix.lower(), ("", ""))
        if expected and self.packing != expected:
            remedy = f"rename it to {path.stem}{plain}"
            raise DataError(f"not a {expected} file despite its name", file=path, remedy=remedy)
        try:
            if self.packing == "gzip":
                head = zlib.decompressobj(wbits=31).decompress(head, _LONGEST_HEADER)
            elif self.packing == "bzip2":
                head = bz2.BZ2Decompressor().decompress(head, _LONGEST_HEADER)
        except (zlib.error, OSError) as error:
            raise DataError(f"damaged {self.packing} file: {error}", file=path) from error
        if not head:
            raise DataError(f"truncated {self.packing} file", file=path)
        self.head = head

    def require(self, needed: int) -> None:
        """Reject a file that cannot unpack to this many bytes."""
        bound = self.size * MAX_RATIO if self.packing == "gzip" else self.size
        if needed > bound and self.packing != "bzip2":
            raise _too_short(self.path, self.size, needed)

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Return `nbytes` from `offset` of the unpacked file, after its length and every checksum are verified."""
        needed = offset + nbytes
        with open_for_reading(self.path) as file:
            if self.packing == "gzip":
                data = _gunzip_at_once(file.read(), needed)
                if data is None:
                    file.seek(0)
                    data = self._unpack(file, gzip.open, needed)
            elif self.packing == "bzip2":
                data = self._unpack(file, bz2.open, needed)
            else:
                data = memoryview(file.read())
        if len(data) < needed:
            raise _too_short(self.path, len(data), needed)
        return data[offset:needed]

    def _unpack(self, file: BinaryIO, opener: Callable[..., Any], wanted: int) -> memoryview:
        excess = 0
        try:
            with opener(file) as unpacked:
                data = unpacked.read(wanted)
                while piece := _next_piece(unpacked):
                    excess += len(piece)
                    if excess > LARGEST_EXCESS:
                        cause = f"{self.packing} file unpacks to more than its header says"
                        raise SecurityError(cause, file=self.path)
        except EOFError as error:
            raise DataError(f"truncated {self.packing} file", file=self.path) from error
        except (OSError, ValueError, zlib.error) as error:
            raise DataError(f"damaged {self.packing} file: {error}", file=self.path) from error
        return memoryview(data)


def _too_short(path: Path, size: int, needed: int) -> DataError:
    """Return the error about a file with fewer bytes than its header needs."""
    cause = "file is shorter than its header says"
    return DataError(cause, file=path, received=f"{size} bytes", expected=f"{needed} bytes")


def _next_piece(unpacked: Any) -> bytes:
    try:
        return bytes(unpacked.read(_SKIM_BYTES))
    except gzip.BadGzipFile as error:
        if str(error).startswith("Not a gzipped file"):  # bytes behind the last member, which gzip ignores, too
            return b""
        raise


def _gunzip_at_once(data: bytes, wanted: int) -> memoryview | None:
    """Unpack a file of one member with libdeflate, which verifies its checksum; None if that is not possible."""
    length = int.from_bytes(data[-4:], "little")
    if not imagecodecs.GZIP.available or not wanted <= length <= wanted + _SLACK_BYTES:
        return None
    target = np.empty(length, dtype=np.uint8).data
    try:
        unpacked = imagecodecs.gzip_decode(data, out=target)
    except (imagecodecs.GzipError, RuntimeError, ValueError):
        return None
    return target[: len(unpacked)] if len(unpacked) >= wanted else None


def gzip_parts(parts: Iterable[Buffer]) -> Iterator[bytes]:
    """Compress bytes or contiguous arrays into a gzip file of one member; equal content gives equal bytes."""

    def squeeze(piece: memoryview) -> bytes:
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        # A flush ends a piece on a whole byte without ending the stream, so pieces can be concatenated.
        return bytes(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH))

    yield _GZIP_HEADER
    crc = length = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in parts:
            view = memoryview(part).cast("B")
            checksum = pool.submit(zlib.crc32, view, crc)
            yield from pool.map(squeeze, (view[n : n + _PIECE_BYTES] for n in range(0, len(view), _PIECE_BYTES)))
            crc = checksum.result()
            length += len(view)
    yield zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush(zlib.Z_FINISH)
    yield struct.pack("<II", crc, length % (1 << 32))
