"""File locks and exclusive ownership of output folders."""

from __future__ import annotations

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

from .atomic import remove_remains
from .places import _only_if_used

try:
    import fcntl
except ImportError:  # Windows
    CAN_LOCK = False
else:
    CAN_LOCK = True


OWNER_NAME = ".medunet.lock"


def _open_no_link(path: Path, flags: int) -> BinaryIO:
    """For writing, but no link: in a folder of somebody else a lock may be one to a file of the user."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags | getattr(os, "O_NOFOLLOW", 0), 0o666), "wb")


@contextmanager
def claim(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Have an output folder for oneself; the lock goes with the process, however it ends.

    What killed writers have left in it is removed.

    Raises:
        DataError: another process has it, or it cannot be written.
    """
    folder = Path(folder)
    path = folder / OWNER_NAME
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_if_used(folder))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _open_no_link(path, 0).close()
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror or error}", file=folder) from error
        held = stack.enter_context(lock(path, wait=False))
        if not held:
            owner = ""
            with contextlib.suppress(OSError):
                owner = path.read_text(encoding="utf-8").strip()
            raise DataError(
                "another process writes into this folder",
                file=folder,
                received=owner or "an owner without a name",
                remedy="wait for it, stop it, or give another --output",
            )
        with contextlib.suppress(OSError), _open_no_link(path, os.O_TRUNC) as file:
            file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%H:%M')}\n".encode())
        remove_remains(folder)
        yield


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
        with _open_no_link(path, 0) as file:
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
