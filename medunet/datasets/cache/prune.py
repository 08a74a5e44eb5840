"""Remove preprocessed cases that are not needed any more, without disturbing processes that use others."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.errors import ConfigError
from medunet.files import cache_folder, knows_locks, lock, remove_remains

from .entry import SUFFIX, Entry

logger = logging.getLogger(__name__)

UNUSED_DAYS = 30.0  # entries that were not opened for so long belong to a configuration that is not used any more
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case in a store."""

    path: Path  # its folder stands for the transforms that made it
    nbytes: int
    last_used: float  # when a data set opened it last, seconds since 1970
    in_use: bool  # whether a process uses entries of these transforms now
    source: str | None = None  # the image
    stale: str | None = None  # why no data set can use it


def store_folder(store_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of a store, by default in medunet's cache folder."""
    return cache_folder() / "store" if store_dir is None else Path(store_dir)


def hold_path(folder: Path) -> Path:
    """Return the file that processes lock while they use or write the entries in a folder."""
    return folder.with_name(f"{folder.name}.use")


@contextmanager
def _lock_unused(root: Path) -> Iterator[dict[Path, bool]]:
    """Lock the folders of a store that no process uses; yield all folders and whether they are unused."""
    with ExitStack() as stack:
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        yield {folder: stack.enter_context(lock(hold_path(folder), wait=False)) for folder in folders}


def list_store(store_dir: str | os.PathLike[str] | None = None) -> list[StoredCase]:
    """Return all preprocessed cases, the least recently used first."""
    with _lock_unused(store_folder(store_dir)) as folders:
        return _cases(folders)


def prune_store(
    store_dir: str | os.PathLike[str] | None = None,
    *,
    unused_days: float | None = UNUSED_DAYS,
    max_bytes: int | None = None,
) -> list[tuple[StoredCase, str]]:
    """Remove preprocessed cases that are stale, then the least recently used ones.

    An entry is stale if its image or label has changed or is missing. Entries of transforms that a process uses are
    never removed: a data set locks them as long as it exists.

    Args:
        store_dir: folder of the store. Default: in medunet's cache folder.
        unused_days: also remove entries that were not used for this many days; None keeps them.
        max_bytes: also remove the least recently used entries until the store has at most this size.

    Returns:
        The removed cases, each with the reason.

    Raises:
        ConfigError: the file system has no locks, so entries in use cannot be recognised.
    """
    root = store_folder(store_dir)
    if not root.is_dir():
        return []
    if not knows_locks(root):
        remedy = "delete the folder while no training runs"
        raise ConfigError("pruning needs a file system with locks, which show what is in use", file=root, remedy=remedy)
    removed: list[tuple[StoredCase, str]] = []
    oldest = time.time() - (unused_days or 0) * SECONDS_PER_DAY
    with _lock_unused(root) as folders:
        cases = _cases(folders)
        unused = None if unused_days is None else f"not used for {unused_days:g} days"
        reasons = {case.path: case.stale or (unused if case.last_used < oldest else None) for case in cases}
        total = sum(case.nbytes for case in cases)
        for case in sorted(cases, key=lambda case: reasons[case.path] is None):
            reason = reasons[case.path]
            if reason is None and max_bytes is not None and total > max_bytes:
                reason = "the cache is larger than its limit"
            if reason is not None and not case.in_use and _remove(case.path):
                removed.append((case, reason))
                total -= case.nbytes
        for folder in (folder for folder, is_unused in folders.items() if is_unused):
            remove_remains(folder)
            for file in folder.glob("*.lock"):  # of killed processes
                _remove(file)
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
    return removed


def _cases(folders: Mapping[Path, bool]) -> list[StoredCase]:
    cases = []
    for folder, is_unused in folders.items():
        for path in folder.glob(f"[!.]*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # replaced by another process
                stat = path.stat()
                entry = Entry.open(path, check_arrays=False)
                files = list(_source_files(entry.content["source"])) if entry else []
                fault = _source_fault(files) if entry else "damaged"
                image = files[0][0] if files else None
                cases.append(StoredCase(path, stat.st_size, stat.st_mtime, not is_unused, image, fault))
    return sorted(cases, key=lambda case: (case.last_used, case.path))


def _source_files(description: Any) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of change of all files in a value of `describe_source`."""
    match description:
        case [str() as path, int() as size, int() as changed]:
            yield path, size, changed
        case dict() | list():
            for value in description.values() if isinstance(description, dict) else description:
                yield from _source_files(value)


def _source_fault(files: list[tuple[str, int, int]]) -> str | None:
    """Return why no data set can use an entry of these files; an unmounted drive does not count as a reason."""
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


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, error)
        return False
    return True
