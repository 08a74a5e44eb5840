"""Gzip at the speed of the machine: checked decompression in one call, compression in parallel pieces.

Reading uses libdeflate (in imagecodecs) if it can, else zlib, which also writes. The files are ordinary: one member,
readable by every gzip.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
from typing_extensions import Buffer

from medunet.errors import DataError, SecurityError

GZIP_MAGIC = b"\x1f\x8b"

MAX_RATIO = 1032
"""No deflate stream grows more than this (RFC 1951): whatever promises more bytes is lying."""

FAST_LEVEL = 1
"""Compression level of `compress`: label maps shrink a hundredfold at any level."""

_PIECE_BYTES = 4 << 20
"""Bytes that one thread compresses at a time. The pieces do not depend on the number of threads, so that equal content
makes equal files."""

_THREADS = min(8, os.cpu_count() or 1)
"""The compressors release the interpreter's lock; more than eight threads wait for memory."""

_SKIM_BYTES = 1 << 20
"""Size of the pieces in which bytes behind the wanted ones are decompressed and forgotten."""

_SLACK_BYTES = 1 << 20
"""How much more than is wanted is decompressed in one call, so as to verify the checksum at the end."""

LARGEST_EXCESS = 64 << 20
"""Unpacked bytes behind the wanted ones that are looked through for a wrong checksum; a file with more is a bomb."""

_MOST_EMPTY_MEMBERS = 1000
"""Each costs time and none; block-compressed files end with one."""

_ZEROS = re.compile(rb"\0*")

_MAX_LENGTH_FIELD = 1 << 32
"""Gzip keeps the length modulo this."""

_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
"""Deflate, no name and no time, fastest, unknown system: equal content makes equal files."""


def gunzip(data: bytes, *, wanted: int, file: str | os.PathLike[str] | None = None) -> memoryview:
    """Decompress a gzip file of one or several members; every checksum and length up to the end is verified.

    Never more than `wanted` and a mebibyte are kept, whatever the file unfolds to.

    Args:
        data: the whole file.
        wanted: number of bytes that are needed; more may come back, and fewer where the file has no more.
        file: named in errors.

    Raises:
        DataError: not gzip, damaged (checksum, length, stream) or truncated.
        SecurityError: so many bytes cannot come out of so small a file, refused before any are reserved; or far more
            come out than are wanted.

    Example:
        >>> gunzip(compress(b"voxels"), wanted=6).tobytes()
        b'voxels'
    """
    if not data.startswith(GZIP_MAGIC):
        raise DataError("not a gzip file", file=file, remedy="copy it again from its source")
    if wanted > MAX_RATIO * len(data):
        raise SecurityError(
            "gzip file cannot hold as much as its header says",
            file=file,
            received=f"{len(data)} bytes",
            expected=f"{wanted} bytes unpacked",
            remedy="copy it again from its source",
        )
    return _gunzip_at_once(data, wanted) or _gunzip_members(data, wanted, file)


def _gunzip_at_once(data: bytes, wanted: int) -> memoryview | None:
    """The first member by libdeflate, if it holds all that is wanted; None sends the file the careful way."""
    length = int.from_bytes(data[-4:], "little")
    if not imagecodecs.GZIP.available or not wanted <= length <= wanted + _SLACK_BYTES < _MAX_LENGTH_FIELD:
        return None
    target = np.empty(length, dtype=np.uint8).data
    try:
        filled = imagecodecs.gzip_decode(data, out=target)  # verifies the member's checksum and length
    except (imagecodecs.GzipError, RuntimeError, ValueError):
        return None
    return target[: len(filled)] if len(filled) >= wanted else None


def _gunzip_members(data: bytes, wanted: int, file: str | os.PathLike[str] | None) -> memoryview:
    source, kept = _Source(data), bytearray()
    empty = excess = 0

    def missing() -> int:
        return max(wanted - len(kept), 0)

    while True:
        length = 0
        for part in _member(source, missing, file):
            length += len(part)
            if len(kept) < wanted:
                kept.extend(part)
            else:
                excess += len(part)
        empty += not length
        if excess > LARGEST_EXCESS or empty > _MOST_EMPTY_MEMBERS:
            raise SecurityError(
                "gzip file unpacks to more than its header says",
                file=file,
                received=f"{excess >> 20} MiB more" if excess else f"{empty} empty members",
                remedy="copy it again from its source",
            )
        if not source.skip_to_member():
            return memoryview(kept)


def _member(source: _Source, missing: Callable[[], int], file: str | os.PathLike[str] | None) -> Iterator[bytes]:
    """The content of the next member in parts; its end is reached unless far too much comes out."""
    member, piece, more, skimmed = zlib.decompressobj(wbits=31), b"", False, 0
    while not member.eof and skimmed <= LARGEST_EXCESS:
        if not piece and not more and not (piece := source.take()):
            raise DataError("truncated gzip file", file=file, remedy="copy it again from its source")
        # Two bytes more than wanted: the checksum is compared only when the stream may go on to its end.
        limit = wanted + 2 if (wanted := missing()) else _SKIM_BYTES
        try:
            part = member.decompress(piece, limit)
        except zlib.error as error:
            raise DataError(f"damaged gzip file: {error}", file=file, remedy="copy it again from its source") from error
        more, piece = len(part) == limit, member.unconsumed_tail
        skimmed += 0 if wanted else len(part)
        yield part
    source.put_back(len(member.unused_data))


class _Source:
    """The bytes of the file, piece by piece: files of many small members would otherwise be copied for each of them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def take(self) -> bytes:
        """The next piece; empty at the end."""
        piece = self.data[self.place : self.place + _SKIM_BYTES]
        self.place += len(piece)
        return piece

    def put_back(self, count: int) -> None:
        """Bytes that belonged to no member."""
        self.place -= count

    def skip_to_member(self) -> bool:
        """Pass over zero padding; False where no member follows: like gzip, ignore other bytes."""
        found = _ZEROS.match(self.data, self.place)
        self.place = found.end() if found else self.place
        return self.data.startswith(GZIP_MAGIC, self.place)


def compress(data: Buffer, *, level: int = FAST_LEVEL) -> bytes:
    """Content as a gzip file of one member, compressed in parallel; equal content gives equal bytes.

    Args:
        data: bytes, or any contiguous array.
        level: of zlib, 0 to 9.

    Example:
        >>> import gzip
        >>> gzip.decompress(compress(bytes(10_000_000))) == bytes(10_000_000)
        True
    """
    return b"".join(compress_parts([data], level=level))


def compress_parts(parts: Iterable[Buffer], *, level: int = FAST_LEVEL) -> Iterator[bytes]:
    """As :func:`compress` for content that comes part by part, so that it need never be in memory whole.

    Args:
        parts: bytes, or contiguous arrays; a part may be reused once the next is asked for.
        level: as of :func:`compress`.

    Example:
        >>> import gzip
        >>> gzip.decompress(b"".join(compress_parts([b"a volume, ", b"slice by slice"])))
        b'a volume, slice by slice'
    """

    def squeeze(piece: memoryview) -> bytes:
        packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        # A flush ends a piece on a whole byte without ending the stream, so that pieces can be put in a row.
        return bytes(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH))

    yield _HEADER
    crc = length = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in parts:
            view = memoryview(part).cast("B")
            running = pool.submit(zlib.crc32, view, crc)
            pieces = (view[start : start + _PIECE_BYTES] for start in range(0, len(view), _PIECE_BYTES))
            yield from pool.map(squeeze, pieces)
            crc = int(running.result())
            length += len(view)
    yield zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS).flush(zlib.Z_FINISH)
    yield struct.pack("<II", crc, length % _MAX_LENGTH_FIELD)
