"""A data set that is preprocessed once; its items are read from disk, only as far as they are used."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import RandomizableTrait, Transform
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medunet.datasets.check.finding import shown
from medunet.errors import DataError, find_cause
from medunet.files import CAN_LOCK, Hold, lock

from .entry import MANIFEST as ENTRY_MANIFEST
from .entry import Entry, remove_remains
from .identity import code_digest, describe_source, digest
from .indices import annotated_indices, foreground_indices, smallest_integers
from .prune import hold_path, remove_free_locks, store_folder

logger = logging.getLogger(__name__)

LABEL = "label"
MAX_THREADS = 8  # cases that are preprocessed in parallel, with as many cores: each may need a gigabyte


class StoreDataset(Dataset):
    """Items whose deterministic transforms are applied once and stored as memory-mapped files.

    It replaces MONAI's `CacheDataset`: the transforms up to the first random one are applied once per case. But the
    result is stored on disk, for later training runs and for other processes too, and arrays are read only where the
    random transforms use them: a patch of a CT costs the voxels of the patch.

    An entry is identified by the files of the case (path, size, time of change), by the transforms with all their
    parameters, by medunet's code and by the versions of its libraries, so any change makes new entries. Entries are
    written atomically; an interrupted preprocessing continues where it was; processes that prepare the same data share
    the work; a damaged entry is prepared again. ``medunet store --prune`` or :func:`medunet.datasets.prune_store`
    removes unused entries; the folder may also be deleted as a whole.

    Items are those of `CacheDataset`, MetaTensors included, with three exceptions: labels with only whole numbers have
    the smallest integer type that fits, the list of applied operations for inverting is empty, and tuples become lists.
    For `RandDeformd`, an item also has the flat indices of foreground voxels as ``"label_indices"`` (one array per
    class, or one per channel of a label with several channels), and of annotated voxels as
    ``"label_annotated_indices"`` if some are not; both are removed after the random transforms.

    An index with an attribute `seed` (:class:`medunet.training.Draw`) seeds the random transforms for its item.

    Args:
        data: items, such as :func:`medunet.datasets.datalist` returns.
        transform: a callable, a sequence of them or a ``monai.transforms.Compose``, applied to each item.
        store_dir: folder of the entries; None: `store` in medunet's cache folder (see `medunet.files.cache_folder`).
        track_meta: False gives tensors without meta data, which transforms handle faster; random ones rarely need any.
        num_workers: cases preprocessed in parallel; None: one per core, at most `MAX_THREADS`.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Sequence[Callable[..., Any]] | Callable[..., Any],
        *,
        store_dir: str | os.PathLike[str] | None = None,
        track_meta: bool = True,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.store_dir = store_dir
        self.track_meta = track_meta
        self.num_workers = num_workers
        self._entries: dict[int, Entry] = {}
        self._hold: Hold | None = None
        self._first_random: int | None = self.transform.get_index_of_first(
            lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform)
        )
        # before transforms remember anything of the items that they see
        self._pipeline = digest(code_digest(), self.transform.transforms[: self._first_random])[:16]

    @property
    def folder(self) -> Path:
        """Folder of the entries that these transforms make."""
        return store_folder(self.store_dir) / self._pipeline

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process locks the entries for itself."""
        return {**self.__dict__, "_hold": None}

    def prepare(self) -> None:
        """Preprocess the cases that are not on disk yet, several in parallel.

        Otherwise items are preprocessed when they are first used, one by one.

        Raises:
            DataError: no room or no right to write; of several cases that cannot be used, all of them in one error.
            Exception: what a transform raises.
        """
        self._use()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ThreadPoolExecutor(max(self.num_workers or min(cores, MAX_THREADS), 1)) as pool:
            entries = list(pool.map(self._open, range(len(self.data))))
            missing = [index for index, entry in enumerate(entries) if entry is None]
            if not missing:
                return
            begun = time.perf_counter()
            logger.info("preparing %d of %d cases in %s", len(missing), len(self.data), self.folder)
            failures: dict[int, Exception] = {}
            with _progress_bar() as bar:
                task = bar.add_task("", total=len(missing))

                def make(index: int, *, wait: bool) -> bool:
                    try:
                        done = self._make(index, wait=wait) is not None
                    except Exception as failure:  # the other cases are prepared, and all failures reported
                        failures[index] = failure
                        return True
                    if done:
                        bar.advance(task)
                    return done

                made = list(pool.map(lambda index: make(index, wait=False), missing))
                # cases of other processes come last: by then they are done, or their process has died
                others = [index for index, done in zip(missing, made, strict=True) if not done]
                list(pool.map(lambda index: make(index, wait=True), others))
        remove_free_locks(self.folder)  # of a process that was killed between its last rename and the unlock
        if failures:
            raise _joined(failures)
        megabytes = sum(self._entries[index].nbytes for index in missing) / 1e6
        logger.info("prepared %d cases, %.0f MB, in %.1f s", len(missing), megabytes, time.perf_counter() - begun)

    def has_foreground(self) -> bool:
        """Return whether a prepared case has a voxel of a class; True for cases without label."""
        labels = [facts for entry in self._entries.values() for facts in entry.manifest["indices"].values()]
        return not labels or any(facts["counts"] for facts in labels)

    def _transform(self, index: int) -> Any:
        if (seed := getattr(index, "seed", None)) is not None:
            self.transform.set_random_state(seed=seed)
        index %= len(self.data)
        self._use()
        try:
            item, indices = self._load(self._entries.get(index) or self._open(index))
        except (OSError, ValueError):  # removed or truncated since it was opened
            item, indices = self._load(self._open(index) or self._make(index, wait=True))
        if self._first_random is None:
            return item
        extra = {f"{key}_indices": arrays for key, arrays in indices.items()}
        result = self.transform({**item, **extra}, start=self._first_random)
        for part in result if isinstance(result, list) else [result]:
            if isinstance(part, dict):
                for key in extra:
                    part.pop(key, None)
        return result

    def _load(self, entry: Entry | None) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
        if entry is None:
            raise FileNotFoundError
        return entry.load(track_meta=self.track_meta), entry.load_indices()

    def _entry_folder(self, index: int) -> Path:
        return self.folder / digest(describe_source(self.data[index]))[:32]

    def _open(self, index: int) -> Entry | None:
        """Return the entry if it exists and is undamaged; it is checked once per process."""
        entry = Entry.open(self._entry_folder(index))
        if entry is not None:
            self._entries[index] = entry
            with contextlib.suppress(OSError):  # a store of another user may be read-only
                os.utime(entry.folder / ENTRY_MANIFEST)  # the time of the last use, for pruning
        return entry

    def _use(self) -> None:
        """Keep `prune_store` away from the entries as long as this object exists."""
        if self._hold is not None:
            return
        try:
            self._make_folder(self.folder.parent)
            self._hold = Hold(hold_path(self.folder))
        except OSError as error:  # a DataError follows when there is anything to write
            logger.debug("%s is not locked: %s", self.folder, error)

    def _make_folder(self, folder: Path) -> None:
        # other users must not read patients' images, unless the folder was chosen
        folder.mkdir(mode=0o700 if self.store_dir is None else 0o777, parents=True, exist_ok=True)

    def _make(self, index: int, *, wait: bool) -> Entry | None:
        """Preprocess and store a case; return None, unless `wait`, if another process or thread is doing so."""
        folder = self._entry_folder(index)
        try:
            self._make_folder(folder.parent)
            with lock(folder.with_suffix(".lock"), wait=wait) as held:
                if not held:
                    return None
                entry = self._open(index)  # another process may have made it meanwhile
                if entry is None:
                    if CAN_LOCK:
                        remove_remains(folder)
                    source = describe_source(self.data[index])
                    entry = Entry.write(folder, *self._preprocess(index), source=source)
        except OSError as error:
            raise DataError(
                f"the folder for preprocessed cases cannot be written: {error.strerror or error}",
                file=error.filename or folder.parent,
                remedy="choose another folder with store_dir",
            ) from error
        self._entries[index] = entry
        return entry

    def _preprocess(self, index: int) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
        item = dict(self.transform(self.data[index], end=self._first_random, threading=True))
        if not isinstance(item.get(LABEL), torch.Tensor | np.ndarray):
            return item, {}
        item[LABEL] = smallest_integers(item[LABEL])
        indices = {LABEL: foreground_indices(item[LABEL])}
        if len(annotated := annotated_indices(item[LABEL])):
            indices[f"{LABEL}_annotated"] = [annotated]
        return item, indices


def _joined(failures: dict[int, Exception]) -> Exception:
    """Return the first failure; for several typed errors, one error that names them all."""
    ordered = [failures[index] for index in sorted(failures)]
    reasons = list(dict.fromkeys(str(cause) for failure in ordered if (cause := find_cause(failure)) is not None))
    if len(reasons) < 2:
        return ordered[0]
    error = DataError(
        f"{len(reasons)} cases cannot be used",
        received=shown(reasons, separator="; "),
        remedy="fix them, or train without them: --skip-bad",
    )
    error.__cause__ = ordered[0]
    return error


def _progress_bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
