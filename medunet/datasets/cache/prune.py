"""Removing preprocessed cases that nobody needs any more, beside processes that use others."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.errors import ConfigError
from medunet.files import cache_folder, knows_locks, lock

from .entry import MANIFEST, remove

logger = logging.getLogger(__name__)

UNUSED_DAYS = 30.0
"""Entries that were not opened for so long belong to a configuration that is not used any more."""

SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case in a store.

    Args:
        folder: of the entry; its parent stands for the transforms that made it.
        nbytes: on disk.
        last_used: when a data set opened it last, seconds since 1970.
        in_use: whether a process holds the entries of these transforms now.
        source: the image, where the entry says so.
        stale: why nobody can need it, or None.
    """

    folder: Path
    nbytes: int
    last_used: float
    in_use: bool
    source: str | None = None
    stale: str | None = None


@dataclass(frozen=True)
class Pruned:
    """What `prune_store` removed, with the reason for each, and what it left."""

    removed: tuple[tuple[StoredCase, str], ...]
    kept: tuple[StoredCase, ...]

    @property
    def freed(self) -> int:
        """Bytes."""
        return sum(case.nbytes for case, _ in self.removed)


def store_folder(store_dir: str | os.PathLike[str] | None = None) -> Path:
    """The store in a folder, or by default in medunet's cache folder."""
    return cache_folder() / "store" if store_dir is None else Path(store_dir)


def hold_path(folder: Path) -> Path:
    """The lock file by which processes say that they use the entries in a folder."""
    return folder.with_name(f"{folder.name}.use")


def remove_free_locks(folder: Path) -> None:
    """Remove the lock files of processes that were killed; those that are held stay."""
    for file in folder.glob("*.lock"):
        with lock(file, wait=False):
            pass  # it goes when it is let go


def list_store(store_dir: str | os.PathLike[str] | None = None) -> list[StoredCase]:
    """All preprocessed cases, the one that was not used for longest first."""
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
    dry_run: bool = False,
) -> Pruned:
    """Remove preprocessed cases that are stale, then those that were not used for longest.

    An entry is stale when its image or label has changed or is gone, so that no data set can find it, or when nobody
    opened it for `unused_days`. Entries of transforms that any process uses are never touched: a data set holds a lock
    on them as long as it lives. What is removed while a data set comes to want it is made anew.

    Args:
        store_dir: as of :class:`StoreDataset`.
        unused_days: see above; None keeps entries however old they are.
        max_bytes: remove more, the longest unused first, until the store has no more than this.
        dry_run: remove nothing, only say what would be.

    Returns:
        What was removed and what was kept.

    Raises:
        ConfigError: the file system knows no locks, so nobody can say what is used.
    """
    root = store_folder(store_dir)
    if not root.is_dir():
        return Pruned((), ())
    if not knows_locks(root):
        raise ConfigError(
            "the file system knows no locks, so that nobody can say which entries are used",
            file=root,
            remedy="delete the folder while no training runs",
        )
    kept: list[StoredCase] = []
    removed: list[tuple[StoredCase, str]] = []
    oldest = time.time() - (unused_days or 0) * SECONDS_A_DAY
    for case in list_store(root):
        unused = unused_days is not None and case.last_used < oldest
        reason = case.stale or (f"not used for {unused_days:g} days" if unused else None)
        done = reason is not None and not case.in_use and _remove(case, dry_run=dry_run)
        if done and reason is not None:
            removed.append((case, reason))
        else:
            kept.append(case)
    total = sum(case.nbytes for case in kept)
    for case in list(kept):
        if max_bytes is None or total <= max_bytes:
            break
        if not case.in_use and _remove(case, dry_run=dry_run):
            kept.remove(case)
            removed.append((case, "the store is larger than its limit"))
            total -= case.nbytes
    if not dry_run:
        _tidy(root)
    return Pruned(tuple(removed), tuple(kept))


def _pipelines(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _cases(folder: Path, *, in_use: bool) -> Iterator[StoredCase]:
    for manifest in folder.glob(f"*/{MANIFEST}"):
        if manifest.parent.name.startswith("."):
            continue
        try:
            nbytes = sum(file.stat().st_size for file in manifest.parent.iterdir())
            last_used, content = manifest.stat().st_mtime, manifest.read_bytes()
        except OSError:  # somebody else prunes
            continue
        try:
            files = list(_source_files(json.loads(content).get("source")))
        except (ValueError, AttributeError):  # a data set would make it anew
            yield StoredCase(manifest.parent, nbytes, last_used, in_use, stale="damaged")
            continue
        source = files[0][0] if files else None
        yield StoredCase(manifest.parent, nbytes, last_used, in_use, source, _source_fault(files))


def _source_files(description: Any) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of all files in what `describe_source` gives."""
    if isinstance(description, dict):
        for value in description.values():
            yield from _source_files(value)
    elif isinstance(description, list):
        match description:
            case [str() as path, int() as size, int() as changed]:
                yield path, size, changed
            case _:
                for value in description:
                    yield from _source_files(value)


def _source_fault(files: list[tuple[str, int, int]]) -> str | None:
    """Why no data set can want what was made from these files; a drive that is not there is no reason."""
    for name, size, changed in files:
        path = Path(name)
        try:
            stat = path.stat()
        except OSError:
            if path.parent.is_dir():
                return f"{path.name} is gone"
            continue
        if (stat.st_size, stat.st_mtime_ns) != (size, changed):
            return f"{path.name} has changed"
    return None


def _remove(case: StoredCase, *, dry_run: bool) -> bool:
    """Remove an entry if nobody has come to use or to write it since; whether it is gone."""
    if dry_run:
        return True
    folder = case.folder
    try:
        with (
            lock(hold_path(folder.parent), wait=False) as unused,
            lock(folder.with_suffix(".lock"), wait=False) as unwritten,
        ):
            if not (unused and unwritten) or _last_used(folder) > case.last_used:
                return False
            # renamed first, so that a reader never sees half an entry
            old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            folder.rename(old)
            remove(old)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", folder, error)
        return False
    return True


def _last_used(folder: Path) -> float:
    return (folder / MANIFEST).stat().st_mtime


def _tidy(root: Path) -> None:
    """Remove what killed processes have left, and folders that hold nothing."""
    for folder in _pipelines(root):
        with contextlib.suppress(OSError), lock(hold_path(folder), wait=False) as unused:
            if not unused:
                continue
            for remains in folder.glob(".*"):
                remove(remains)
            remove_free_locks(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
