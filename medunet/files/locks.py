"""File locks, and exclusive ownership of output folders."""

import contextlib
import errno
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from medunet.errors import DataError

from .atomic import remove_remains, unwritable
from .places import only_if_used

try:
    import fcntl
except ImportError:  # Windows
    CAN_LOCK = False
else:
    CAN_LOCK = True

OWNER_NAME = ".medunet.lock"


def _open_no_link(path: Path, flags: int = 0) -> BinaryIO:
    """Open for writing without following links: in another user's folder, a lock file could be a link to our file."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags | getattr(os, "O_NOFOLLOW", 0), 0o666), "wb")


@contextmanager
def claim(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Claim an output folder exclusively, and remove the temporary files of killed writers from it.

    The lock is released when the process exits, even after a crash.

    Raises:
        DataError: another process has it, or it cannot be written.
    """
    folder = Path(folder)
    path = folder / OWNER_NAME
    with only_if_used(folder), ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _open_no_link(path).close()
        except OSError as error:
            raise unwritable(folder, error) from error
        if not stack.enter_context(lock(path, wait=False)):
            owner = None
            with contextlib.suppress(OSError):
                owner = path.read_text(encoding="utf-8").strip() or None
            remedy = "wait for it, stop it, or give another --output"
            raise DataError("another process writes into this folder", file=folder, received=owner, remedy=remedy)
        with contextlib.suppress(OSError), _open_no_link(path, os.O_TRUNC) as file:
            file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%H:%M')}\n".encode())
        remove_remains(folder)
        yield


@contextmanager
def lock(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file exclusively, among threads and processes.

    The system releases the lock of a process that exits, even after a crash. If it does not support such locks
    (Windows, some network drives), every caller gets it, so the block must also be correct without it, if wasteful.

    Yields whether the lock is held, which is always so with `wait`. The file is removed afterwards.
    """
    path = Path(path)
    if not CAN_LOCK:
        yield True
        return
    with _locked_file(path, wait=wait) as is_held:
        try:
            yield is_held
        finally:
            if is_held:
                path.unlink(missing_ok=True)


class Hold:
    """A shared lock on a file that stays, until `release`, or until this process and its forks have exited.

    Several processes can hold one file; :func:`lock` sees it as locked until the last one releases it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._stack = ExitStack()
        if CAN_LOCK:
            self._stack.enter_context(_locked_file(Path(path), wait=True, shared=True))

    def release(self) -> None:
        """Release the lock."""
        self._stack.close()


def knows_locks(folder: str | os.PathLike[str]) -> bool:
    """Return whether locks work on files of a folder; on Windows and some network drives they do not."""
    if not CAN_LOCK:
        return False
    probe = Path(folder) / f".{secrets.token_hex(4)}.lock"
    with lock(probe), lock(probe, wait=False) as second:
        return not second


@contextmanager
def _locked_file(path: Path, *, wait: bool, shared: bool = False) -> Iterator[bool]:
    while True:
        with _open_no_link(path) as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    yield False
                    return
                # else the file system does not support locks
            is_current = False  # the last holder may have removed the file, so that others lock a new one
            with contextlib.suppress(FileNotFoundError):
                is_current = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            if is_current:
                yield True
                return
