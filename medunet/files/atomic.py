"""Atomic file writes, and digests."""

import contextlib
import hashlib
import os
import re
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medunet.errors import DataError

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")  # names of `temporary_name`


def temporary_name(path: Path) -> Path:
    """Return a hidden, unused name beside a path, with the same suffix, by which writers choose the format."""
    return path.with_name(f".{secrets.token_hex(4)}.{path.name}")


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces ``path`` if the block succeeds. Missing folders are created.

    Raises:
        DataError: the file exists and may not be replaced, or the folder cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DataError("exists already", file=path, remedy="choose another name or allow overwriting")
    temporary = temporary_name(path)  # in the same folder: a rename is atomic on one file system only
    own_paths = {str(temporary), str(path), *map(str, path.parents)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        temporary.replace(path)
        sync_folder(path.parent)  # else it can bring the old name back
    except OSError as error:
        if error.filename is not None and str(error.filename) not in own_paths:
            raise  # the block could not read another file
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # on a read-only file system
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> DataError:
    """Return the typed error about a file or folder that cannot be written."""
    return DataError(f"cannot be written: {error.strerror or error}", file=path)


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, overwrite: bool = True) -> Path:
    """Write text (UTF-8) or bytes, and return the path; raise as :func:`atomic_path`."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, if the system can (Windows and some network drives cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_whole_zip(path: Path) -> bool:
    """Return whether a file is a ZIP archive, as PyTorch's checkpoints are, whose parts all match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a flipped bit can also ask for another version of ZIP, a password or a method
        return False


def damaged_checkpoint(path: Path) -> DataError | None:
    """Return an error about a checkpoint that is empty, or starts like a ZIP archive but is incomplete; else None."""
    with path.open("rb") as file:
        start = file.read(4)
    if start and (not start.startswith(b"PK") or is_whole_zip(path)):
        return None
    twin = path.with_suffix(".safetensors")
    beside = f", or delete it: {twin.name} beside it was written with it and is then read" if twin.is_file() else ""
    cause = "the file is damaged: it is truncated or has changed bytes"
    return DataError(cause, file=path, remedy=f"copy it again{beside}")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def keep_as(path: Path, name: Path) -> None:
    """Keep a file that will be replaced under a second name, without copying it; do nothing if it is missing."""
    temporary = temporary_name(name)
    with contextlib.suppress(OSError):
        try:
            os.link(path, temporary)
            temporary.replace(name)
        except OSError:  # no hard links on this file system
            path.replace(name)
        finally:
            temporary.unlink(missing_ok=True)


def remove_remains(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files of killed writers from a folder in which no process writes."""
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)
