"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medunet.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    CAN_LOCK = False
else:
    CAN_LOCK = True


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


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where medunet keeps what it can compute again.

    Args:
        folder: this one; None takes the environment's `MEDUNET_CACHE_DIR`, or `medunet` in the user's cache folder.
    """
    if folder is None:
        folder = os.environ.get("MEDUNET_CACHE_DIR")
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medunet"
    return Path(folder)


@contextmanager
def lock(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; threads and processes that ask for the same one take turns.

    The system frees the lock of a process that ends, however it ends. Where it knows no such locks (Windows, some
    network drives) everybody gets it, so what is done under it must also be safe, only wasteful, without.

    Args:
        path: the lock file; it is removed afterwards.
        wait: otherwise do not wait for another holder.

    Yields:
        Whether it is held: always, if waited for.
    """
    path = Path(path)
    if not CAN_LOCK:
        yield True
        return
    with _locked_file(path, wait=wait) as held:
        try:
            yield held
        finally:
            if held:
                path.unlink(missing_ok=True)


class Hold:
    """Says that something is in use, until `release`, or until the process and those forked from it have ended.

    Many may hold one file at a time; :func:`lock` finds it locked as long as anybody does.

    Args:
        path: the lock file; it stays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._held = ExitStack()
        if CAN_LOCK:
            self._held.enter_context(_locked_file(Path(path), wait=True, shared=True))

    def release(self) -> None:
        """Let go."""
        self._held.close()


def knows_locks(folder: str | os.PathLike[str]) -> bool:
    """Whether locks on files of a folder mean anything there; on Windows and some network drives they do not."""
    if not CAN_LOCK:
        return False
    probe = Path(folder) / f".{secrets.token_hex(4)}.lock"
    with lock(probe), lock(probe, wait=False) as second:
        return not second


@contextmanager
def _locked_file(path: Path, *, wait: bool, shared: bool = False) -> Iterator[bool]:
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                # else the file system knows no locks
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    yield False
                    return
            try:
                current = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:  # else the holder before has removed what was waited for, and others lock a new file
                yield True
                return
