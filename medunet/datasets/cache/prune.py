"""Remove preprocessed cases that are not needed any more, without disturbing processes that use others."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.errors import ConfigError
from medunet.files import cache_folder, knows_locks, lock

from .entry import MANIFEST, remove

logger = logging.getLogger(__name__)

UNUSED_DAYS = 30.0  # entries that were not opened for so long belong to a configuration that is not used any more
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case in a store."""

    folder: Path  # its parent stands for the transforms that made it
    nbytes: int
    last_used: float  # when a data set opened it last, seconds since 1970
    in_use: bool  # whether a process uses entries of these transforms now
    source: str | None = None  # the image
    stale: str | None = None  # why no data set can use it


def store_folder(store_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of a store, by default in medunet's cache folder."""
    return cache_folder() / "store" if store_dir is None else Path(store_dir)


def hold_path(folder: Path) -> Path:
    """Return the file that processes lock while they use the entries in a folder."""
    return folder.with_name(f"{folder.name}.use")


def remove_free_locks(folder: Path) -> None:
    """Remove the lock files of processes that were killed; those that are held stay."""
    for file in folder.glob("*.lock"):
        with lock(file, wait=False):
            pass  # the file is removed when the lock is released


def list_store(store_dir: str | os.PathLike[str] | None = None) -> list[StoredCase]:
    """Return all preprocessed cases, the least recently used first."""
    cases: list[StoredCase] = []
    for folder in _pipelines(store_folder(store_dir)):
        with lock(hold_path(folder), wait=False) as free:
            cases += _cases(folder, in_use=not free)
    return sorted(cases, key=lambda case: (case.last_used, case.folder))


def prune_store(
    store_dir: str | os.PathLike[str] | None = None,
    *,
    unused_days: float | None = UNUSED_DAYS,
    max_bytes: int | None = None,
) -> list[tuple[StoredCase, str]]:
    """Remove preprocessed cases that are stale, then the least recently used ones.

    An entry is stale if its image or label has changed or is missing, so that no data set can use it, or if it was not
    opened for `unused_days`. Entries of transforms that any process uses are never removed: a data set holds a lock on
    them as long as it exists.

    Args:
        store_dir: as of :class:`StoreDataset`.
        unused_days: days without use; None keeps entries however old they are.
        max_bytes: remove more, the least recently used first, until the store is not larger than this.

    Returns:
        The removed cases, each with the reason.

    Raises:
        ConfigError: the file system has no locks, so that entries in use cannot be recognised.
    """
    root = store_folder(store_dir)
    if not root.is_dir():
        return []
    if not knows_locks(root):
        remedy = "delete the folder while no training runs"
        raise ConfigError("the file system knows no locks: entries in use are unknown", file=root, remedy=remedy)
    kept: list[StoredCase] = []
    removed: list[tuple[StoredCase, str]] = []
    oldest = time.time() - (unused_days or 0) * SECONDS_PER_DAY
    for case in list_store(root):
        unused = unused_days is not None and case.last_used < oldest
        reason = case.stale or (f"not used for {unused_days:g} days" if unused else None)
        if reason is not None and _remove(case):
            removed.append((case, reason))
        else:
            kept.append(case)
    total = sum(case.nbytes for case in kept)
    for case in list(kept):
        if max_bytes is not None and total > max_bytes and _remove(case):
            kept.remove(case)
            removed.append((case, "the store is larger than its limit"))
            total -= case.nbytes
    _tidy(root)
    return removed


def _pipelines(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _cases(folder: Path, *, in_use: bool) -> Iterator[StoredCase]:
    for manifest in folder.glob(f"[!.]*/{MANIFEST}"):
        try:
            nbytes = sum(file.stat().st_size for file in manifest.parent.iterdir())
            last_used, content = manifest.stat().st_mtime, manifest.read_bytes()
        except OSError:  # removed by another process
            continue
        try:
            files = list(_source_files(json.loads(content).get("source")))
        except (ValueError, AttributeError):
            yield StoredCase(manifest.parent, nbytes, last_used, in_use, stale="damaged")
            continue
        source = files[0][0] if files else None
        yield StoredCase(manifest.parent, nbytes, last_used, in_use, source, _source_fault(files))


def _source_files(description: Any) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of change of all files in a value of `describe_source`."""
    match description:
        case [str() as path, int() as size, int() as changed]:
            yield path, size, changed
        case dict() | list():
            for value in description.values() if isinstance(description, dict) else description:
                yield from _source_files(value)


def _source_fault(files: list[tuple[str, int, int]]) -> str | None:
    """Return why no data set can use an entry of these files; a drive that is not mounted is no reason."""
    for name, size, changed in files:
        path = Path(name)
        try:
            stat = path.stat()
        except OSError:
            if path.parent.is_dir():
                return "image or label is missing"
            continue
        if (stat.st_size, stat.st_mtime_ns) != (size, changed):
            return "image or label has changed"
    return None


def _remove(case: StoredCase) -> bool:
    """Remove an entry unless a process uses or writes it, or has used it since it was listed."""
    folder = case.folder
    try:
        with (
            lock(hold_path(folder.parent), wait=False) as unused,
            lock(folder.with_suffix(".lock"), wait=False) as unwritten,
        ):
            if not (unused and unwritten) or (folder / MANIFEST).stat().st_mtime > case.last_used:
                return False
            remove(folder)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", folder, error)
        return False
    return True


def _tidy(root: Path) -> None:
    """Remove what killed processes have left, and empty folders."""
    for folder in _pipelines(root):
        with contextlib.suppress(OSError), lock(hold_path(folder), wait=False) as unused:
            if not unused:
                continue
            for remains in folder.glob(".*"):
                remove(remains)
            remove_free_locks(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
