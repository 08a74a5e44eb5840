"""Unpacking an untrusted archive: plain files of limited size inside one new folder."""

import gzip
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, NamedTuple

from medunet.errors import DataError, MedunetError, SecurityError

MAX_FILES = 2_000
MAX_BYTES = 4 << 30  # all files together, unpacked; the weights of an ensemble of five large networks are smaller
_CHUNK = 1 << 20
_LARGEST_HEADER = 8 << 20  # of a .tar: `tarfile` reads a header in one piece, whatever size it claims


class _Member(NamedTuple):
    name: str
    size: int
    is_plain: bool
    is_folder: bool
    open: Callable[[], Any]


def unpack(archive: Path, output: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> Path:
    """Unpack a .zip, .tar or .tar.gz with a bundle atomically into a folder that does not exist yet.

    Args:
        archive: the file.
        output: the new folder; a single folder at the top of the archive becomes it.
        max_bytes: limit of all files together, counted while unpacking, whatever the archive claims.
        max_files: limit of entries.

    Returns:
        The folder.

    Raises:
        SecurityError: a path that leaves the folder, a link or device, a duplicate name, or a limit is exceeded.
        DataError: not an archive, or the folder exists.
    """
    if output.exists():
        raise DataError("exists already", file=output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".unpack_") as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        try:
            _unpack(archive, folder, max_bytes, max_files)
            inside = list(folder.iterdir())
            top = inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name != "configs" else folder
            top.rename(output)
        except MedunetError:
            raise
        except Exception as error:  # the decoders raise many types for damaged data
            cause = f"cannot be unpacked: {getattr(error, 'strerror', None) or error}"
            raise DataError(cause, file=archive, expected="a .zip, .tar or .tar.gz") from error
    return output


def _unpack(archive: Path, folder: Path, max_bytes: int, max_files: int) -> None:
    too_large = SecurityError("unpacked archive is too big", file=archive, expected=f"up to {max_bytes / 2**30:g} GiB")
    seen: set[str] = set()
    written = 0
    with _opened(archive, too_large) as members:
        for count, member in enumerate(members, start=1):
            if count > max_files:
                raise SecurityError("archive has too many files", file=archive, expected=f"up to {max_files}")
            target = folder.joinpath(*_checked_parts(member, archive, seen))
            if written + member.size > max_bytes:
                raise too_large
            (target if member.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
            if member.is_folder:
                continue
            with member.open() as source, target.open("xb") as file:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise too_large
                    file.write(chunk)


@contextmanager
def _opened(archive: Path, too_large: SecurityError) -> Iterator[Iterator[_Member]]:
    """Open an archive and yield its members one by one: a list would read an endless archive to its end."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield (_zip_member(info, zipped) for info in zipped.infolist())
        return
    with archive.open("rb") as file:
        opener = gzip.open if file.read(2) == b"\x1f\x8b" else Path.open
    with opener(archive, "rb") as content, tarfile.open(fileobj=_bounded(content, too_large), mode="r:") as tar:
        yield (_Member(m.name, m.size, m.isreg() or m.isdir(), m.isdir(), partial(tar.extractfile, m)) for m in tar)


def _zip_member(info: zipfile.ZipInfo, zipped: zipfile.ZipFile) -> _Member:
    is_plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
    return _Member(info.filename, info.file_size, is_plain, info.is_dir(), partial(zipped.open, info))


def _bounded(file: Any, too_large: SecurityError) -> Any:
    """Return a file that reads at most the size of a header per call."""

    def read(size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise too_large
        return bytes(file.read(size))

    return SimpleNamespace(read=read, seek=file.seek, tell=file.tell)


def _checked_parts(member: _Member, archive: Path, seen: set[str]) -> tuple[str, ...]:
    name, path = member.name, PurePosixPath(member.name)
    key = path.as_posix().casefold()
    if "\\" in name or ":" in name or "\0" in name or path.is_absolute() or ".." in path.parts:
        cause = "archive has a path that leaves the folder"
    elif not member.is_plain:
        cause = "archive has a link or a device"
    elif not member.is_folder and key in seen:  # the second file would replace the one that was checked
        cause = "archive has a name twice"
    else:
        seen |= set() if member.is_folder else {key}
        return path.parts
    raise SecurityError(cause, file=archive, received=repr(name)[:200])
