"""A file is written whole or not at all, and stays; who else writes in a folder is told."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from medunet.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    CAN_LOCK = False
else:
    CAN_LOCK = True


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


def config_folder() -> Path:
    """Where medunet keeps what the user decided: `MEDUNET_CONFIG_DIR`, or `medunet` in the user's config folder."""
    own = os.environ.get("MEDUNET_CONFIG_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "medunet"


def keep_as(path: Path, name: Path) -> None:
    """Give a file that is about to be replaced a second name, without copying; nothing where there is none."""
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

PROBE_BYTES = 1 << 16
"""Written and removed again, to see whether a folder takes anything."""


@contextmanager
def _only_if_used(folder: Path) -> Iterator[None]:
    """Folders that are made in the block and are empty after it are removed again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def require_path(path: str | os.PathLike[str] | None) -> None:
    """Reject a path that does not exist; None passes.

    Raises:
        DataError: it does not exist.
    """
    if path is not None and not Path(path).exists():
        raise DataError("does not exist", file=path)


def reject_other_files(folder: str | os.PathLike[str], *, own: str | None = None) -> None:
    """Reject an output folder with files that another program or person put there; hidden files do not count.

    Args:
        folder: an output folder; need not exist.
        own: pattern of a path that shows that the same command wrote into the folder before.

    Raises:
        DataError: a file, or a folder with other files.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError("the output must be a folder", file=folder, received="a file")
    others = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
    if others and (own is None or next(folder.glob(own), None) is None):
        raise DataError(
            "the output folder contains other files",
            file=folder,
            received=", ".join(others[:3]) + (" ..." if len(others) > 3 else ""),
            expected="an empty or a new folder",
        )


def check_target(folder: str | os.PathLike[str], *, needed: int = 0) -> None:
    """Make sure that results can be written, before the work is done.

    Args:
        folder: where to; made if missing.
        needed: bytes that will be written.

    Raises:
        DataError: read-only, no folder, full, or not enough room.
    """
    folder = Path(folder)
    probe = folder / f".{secrets.token_hex(4)}.probe"
    with _only_if_used(folder):
        try:
            write_atomically(probe, bytes(PROBE_BYTES))
            probe.unlink(missing_ok=True)
            free = shutil.disk_usage(folder).free
        except DataError as error:
            is_full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL_DISK
            remedy = "make room, or give another --output" if is_full else "give another --output"
            raise DataError(error.cause, file=folder, remedy=remedy) from error
    if free < needed:
        raise DataError(
            "there is no room for the results",
            file=folder,
            received=f"{free / 2**20:.0f} MiB free",
            expected=f"{needed / 2**20:.0f} MiB",
            remedy="make room, or give another --output",
        )


_REMAINS = re.compile(r"\.[0-9a-f]{8}\..+")


def remove_remains(folder: str | os.PathLike[str]) -> None:
    """Remove what killed writers have left in a folder; nobody may be writing there."""
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            if _REMAINS.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


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
