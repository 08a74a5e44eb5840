"""Atomic file writes, and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medunet.errors import DataError

ZIP_MAGIC = b"PK"


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; when the block ends well the file takes its place.

    The temporary name is hidden and keeps the ending, by which writers choose the format. It lies in the same folder,
    because a rename is atomic on one file system only. Missing folders are made.

    Raises:
        DataError: the file exists and may not be replaced, or the folder cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DataError("exists already", file=path, remedy="choose another name or allow overwriting")
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    ours = {str(temporary), str(path), *map(str, path.parents)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        temporary.replace(path)
        sync_folder(path.parent)  # else it can bring the old name back
    except OSError as error:
        if error.filename is not None and str(error.filename) not in ours:
            raise  # the block could not read another file
        raise DataError(f"cannot be written: {error.strerror or error}", file=path) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only file system refuses even to remove nothing
            temporary.unlink(missing_ok=True)


def write_atomically(
    path: str | os.PathLike[str],
    content: str | bytes | memoryview | Iterable[bytes | memoryview],
    *,
    overwrite: bool = True,
) -> Path:
    """Write text (UTF-8), bytes or parts of bytes; raises as :func:`atomic_path`. Returns the path."""
    content = content.encode() if isinstance(content, str) else content
    with atomic_path(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes | memoryview) else content)
    return Path(path)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk; where the system cannot (Windows, some network drives) it does so in time."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_whole_zip(path: Path) -> bool:
    """Return whether a file is a ZIP archive, as PyTorch's checkpoints are, whose parts all have their checksums."""
    try:
        with zipfile.ZipFile(path) as opened:
            return opened.testzip() is None
    except Exception:  # a flipped bit may also ask for another version of ZIP, a password or a method
        return False


def damaged_checkpoint(path: Path) -> DataError | None:
    """Return an error about a checkpoint that is empty or begins as a ZIP archive and is not a whole one, else None."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin and (not begin.startswith(ZIP_MAGIC) or is_whole_zip(path)):
        return None
    twin = path.with_suffix(".safetensors")
    beside = f", or delete it: {twin.name} beside it was written with it and is then read" if twin.is_file() else ""
    return DataError(
        "the file is damaged: it is truncated or has changed bytes",
        file=path,
        received=f"{path.stat().st_size} bytes",
        remedy=f"copy it again{beside}",
    )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def keep_as(path: Path, name: Path) -> None:
    """Give a file that is about to be replaced a second name, without copying it. Do nothing if it is missing."""
    temporary = name.with_name(f".{secrets.token_hex(4)}.{name.name}")
    try:
        os.link(path, temporary)
        temporary.replace(name)
    except FileNotFoundError:
        return
    except OSError:  # no hard links on this file system
        with contextlib.suppress(OSError):
            path.replace(name)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk or a quota without free space."""


_REMAINS = re.compile(r"\.[0-9a-f]{8}\..+")


def remove_remains(folder: str | os.PathLike[str]) -> None:
    """Remove what killed writers have left in a folder; nobody may be writing there."""
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            if _REMAINS.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)
