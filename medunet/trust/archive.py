"""Unpacking a stranger's archive: plain files inside of one new folder, and not endless ones."""

from __future__ import annotations

import gzip
import lzma
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medunet.errors import DataError, SecurityError

MAX_FILES = 2_000
MAX_BYTES = 4 << 30
"""All files together, unpacked; the weights of an ensemble of five large networks stay below."""
_CHUNK = 1 << 20
_LARGEST_HEADER = 8 << 20
"""Of a .tar: `tarfile` reads a header at once, whatever size it claims."""

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
_Opener = Callable[[Any], "IO[bytes] | None"]


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_plain: bool
    is_folder: bool
    handle: zipfile.ZipInfo | tarfile.TarInfo


def unpack(archive: Path, output: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> Path:
    """Unpack a .zip, .tar or .tar.gz with a bundle into a folder that does not exist yet; whole or not at all.

    Args:
        archive: the file.
        output: the new folder; a single folder at the top of the archive becomes it.
        max_bytes: of all files together; counted while unpacking, whatever the archive says.
        max_files: entries.

    Returns:
        The folder.

    Raises:
        SecurityError: a path that leaves the folder, a link or device, a name twice, or too much of anything.
        DataError: no archive, or the folder exists.
    """
    if output.exists():
        raise DataError("exists already", file=output, remedy="give a folder that does not exist")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{secrets.token_hex(4)}.{output.name}")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _write(archive, _zip_members(opened), opened.open, temporary, (max_bytes, max_files))
        else:
            with _bounded(archive, max_bytes) as content, tarfile.open(fileobj=content, mode="r:") as tar:
                _write(archive, _tar_members(tar), tar.extractfile, temporary, (max_bytes, max_files))
        inside = list(temporary.iterdir())
        top = inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name != "configs" else temporary
        top.rename(output)
    except (*_DAMAGED, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot be unpacked: {error}", file=archive, expected="a .zip, .tar or .tar.gz") from error
    except OSError as error:
        raise DataError(f"cannot be unpacked: {error.strerror or error}", file=archive) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


class _Bounded:
    """A file that gives no more at once than a header may have."""

    def __init__(self, file: Any, archive: Path, max_bytes: int) -> None:
        self.file, self.archive, self.max_bytes = file, archive, max_bytes
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise _too_large(self.archive, self.max_bytes)
        content: bytes = self.file.read(size)
        return content


@contextmanager
def _bounded(archive: Path, max_bytes: int) -> Iterator[Any]:
    with archive.open("rb") as file:
        opener = gzip.open if file.read(2) == b"\x1f\x8b" else Path.open
    with opener(archive, "rb") as content:
        yield _Bounded(content, archive, max_bytes)


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        yield _Member(info.filename, info.file_size, plain, info.is_dir(), info)


def _tar_members(opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:  # one by one: a list of all would read an endless archive to its end
        yield _Member(info.name, info.size, info.isreg() or info.isdir(), info.isdir(), info)


def _write(archive: Path, members: Iterator[_Member], opener: _Opener, folder: Path, limits: tuple[int, int]) -> None:
    max_bytes, max_files = limits
    folder.mkdir()
    seen: set[str] = set()
    written = 0
    for count, member in enumerate(members, start=1):
        if count > max_files:
            raise SecurityError("an archive of too many files", file=archive, expected=f"up to {max_files}")
        parts = _checked_parts(member, archive, seen)
        if written + member.size > max_bytes:
            raise _too_large(archive, max_bytes)
        target = folder.joinpath(*parts)
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        source: IO[bytes] | None = opener(member.handle)
        if source is None:
            raise SecurityError("an entry that is no plain file", file=archive, received=repr(member.name))
        with source, target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > max_bytes:
                    raise _too_large(archive, max_bytes)
                file.write(chunk)


def _checked_parts(member: _Member, archive: Path, seen: set[str]) -> tuple[str, ...]:
    name = member.name
    path = PurePosixPath(name)
    bad = "\\" in name or ":" in name or "\0" in name or path.is_absolute() or ".." in path.parts
    if bad:
        raise SecurityError("a path that leaves the folder", file=archive, received=repr(name)[:200])
    if not member.is_plain:
        raise SecurityError("a link or a device", file=archive, received=repr(name)[:200])
    if not member.is_folder:
        if path.as_posix().casefold() in seen:  # the second would replace what was looked at first
            raise SecurityError("a name that stands twice", file=archive, received=repr(name)[:200])
        seen.add(path.as_posix().casefold())
    return path.parts


def _too_large(archive: Path, max_bytes: int) -> SecurityError:
    return SecurityError(
        "an archive that unpacks to too much", file=archive, expected=f"up to {max_bytes / 2**30:g} GiB"
    )
