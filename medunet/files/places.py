"""The user's folders, and checks of output folders before anything is written."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medunet.errors import DataError

from .atomic import FULL_DISK, write_atomically


def config_folder() -> Path:
    """Where medunet keeps what the user decided: `MEDUNET_CONFIG_DIR`, or `medunet` in the user's config folder."""
    own = os.environ.get("MEDUNET_CONFIG_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "medunet"


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
