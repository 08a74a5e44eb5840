"""A file is written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medunet.errors import DataError


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", file=path) from error
    finally:
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
