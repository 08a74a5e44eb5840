"""A data set that is preprocessed once and then read from disk on demand."""

import contextlib
import logging
import os
import random
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
from safetensors import SafetensorError

from medunet.datasets.check.finding import shown
from medunet.errors import DataError, find_cause
from medunet.files import Hold, lock

from .entry import SUFFIX, Entry
from .identity import code_digest, describe_source, digest
from .indices import annotated_indices, foreground_indices, smallest_integers
from .prune import hold_path, store_folder

logger = logging.getLogger(__name__)

LABEL = "label"
MAX_THREADS = 8  # cases that are preprocessed in parallel, with as many cores: each may need some gigabytes


class StoreDataset(Dataset):
    """A data set whose deterministic transforms are applied once and stored as memory-mapped files.

    It replaces MONAI's `CacheDataset`: the transforms up to the first random one are applied once per case, and the
    result is stored on disk, for later runs and other processes too. A patch of a CT only reads its own voxels.

    An entry is identified by the files of the case (path, size, time of change), the transforms with all their
    parameters, medunet's code and the versions of its libraries. Interrupted preprocessing resumes, processes that
    prepare the same data share the work, and damaged entries are prepared again. ``medunet cache --prune`` removes
    unused entries; the folder may also be deleted.

    Items are those of `CacheDataset`, with three exceptions: labels with only whole numbers have the smallest integer
    type that fits, the list of applied operations for inverting is empty, and tuples become lists. For `RandDeformd`,
    an item also has flat indices of foreground voxels as ``"label_indices"`` (one array per class, or per channel of a
    label with several channels), and of annotated voxels as ``"label_annotated_indices"`` if some are not annotated.

    An index with an attribute `seed` (:class:`medunet.training.Draw`) seeds the random transforms for its item.

    Args:
        data: items, such as :func:`medunet.datasets.datalist` returns.
        transform: a callable, a sequence of them or a ``monai.transforms.Compose``, applied to each item.
        store_dir: folder of the entries. Default: `store` in medunet's cache folder.
        track_meta: False gives tensors without meta data, which transforms handle faster.
        num_workers: cases preprocessed in parallel. Default: one per core, at most 8.
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
        # now, because transforms remember some of the items that they see
        self._pipeline = digest(code_digest(), self.transform.transforms[: self._first_random])[:16]

    @property
    def folder(self) -> Path:
        """Folder of the entries that these transforms produce."""
        return store_folder(self.store_dir) / self._pipeline

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the lock: a copy in another process locks the entries itself."""
        return {**self.__dict__, "_hold": None}

    def prepare(self) -> None:
        """Preprocess the cases that are not on disk yet, several in parallel.

        Without it, items are preprocessed one by one when they are first used.

        Raises:
            DataError: the store cannot be written; or several cases cannot be used, which are all listed.
            Exception: the error of a transform.
        """
        self._use()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        failures: dict[int, Exception] = {}
        with ThreadPoolExecutor(max(self.num_workers or min(cores, MAX_THREADS), 1)) as pool, _progress_bar() as bar:
            entries = list(pool.map(self._open, range(len(self.data))))
            missing = [index for index, entry in enumerate(entries) if entry is None]
            if not missing:
                return
            begun = time.perf_counter()
            logger.info("preparing %d of %d cases in %s", len(missing), len(self.data), self.folder)
            task = bar.add_task("", total=len(missing))

            def make(index: int) -> None:
                try:
                    self._make(index)
                except Exception as failure:  # the other cases are prepared, and all failures reported
                    failures[index] = failure
                bar.advance(task)

            # in another order than other processes, which share the work
            list(pool.map(make, random.Random(os.getpid()).sample(missing, len(missing))))
        if failures:
            raise _joined(failures)
        logger.info("prepared %d cases in %.1f s", len(missing), time.perf_counter() - begun)

    def has_foreground(self) -> bool:
        """Return whether a prepared case has a voxel of a class; True for cases without a label."""
        labels = [counts for entry in self._entries.values() for counts in entry.content["indices"].values()]
        return not labels or any(labels)

    def _transform(self, index: int) -> Any:
        if (seed := getattr(index, "seed", None)) is not None:
            self.transform.set_random_state(seed=seed)
        index %= len(self.data)
        self._use()
        entry = self._entries.get(index) or self._open(index) or self._make(index)
        try:
            item, indices = entry.load(track_meta=self.track_meta)
        except (OSError, RuntimeError, SafetensorError):  # removed or truncated since it was opened
            item, indices = (self._open(index) or self._make(index)).load(track_meta=self.track_meta)
        if self._first_random is None:
            return item
        extra = {f"{key}_indices": arrays for key, arrays in indices.items()}
        result = self.transform({**item, **extra}, start=self._first_random)
        for part in result if isinstance(result, list) else [result]:
            if isinstance(part, dict):
                for key in extra:
                    part.pop(key, None)
        return result

    def _path(self, index: int) -> Path:
        return self.folder / f"{digest(describe_source(self.data[index]))[:32]}{SUFFIX}"

    def _open(self, index: int) -> Entry | None:
        """Return the entry if it exists and is undamaged; it is checked once per process."""
        entry = Entry.open(self._path(index))
        if entry is not None:
            self._entries[index] = entry
            with contextlib.suppress(OSError):  # a store of another user may be read-only
                os.utime(entry.path)  # the time of the last use, for pruning
        return entry

    def _use(self) -> None:
        """Lock the entries against `prune_store` as long as this object exists."""
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

    def _make(self, index: int) -> Entry:
        """Preprocess and store a case, unless another process or thread does so first."""
        path = self._path(index)
        with contextlib.ExitStack() as stack:
            try:
                self._make_folder(path.parent)
                stack.enter_context(lock(path.with_suffix(".lock")))
            except OSError as error:
                raise _unwritable(path, error.strerror) from error
            if entry := self._open(index):
                return entry
            source = describe_source(self.data[index])
            item, indices = self._preprocess(index)
            try:
                self._entries[index] = Entry.write(path, item, indices, source=source)
            except DataError as error:
                raise _unwritable(path, error.cause) from error
            return self._entries[index]

    def _preprocess(self, index: int) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
        item = dict(self.transform(self.data[index], end=self._first_random, threading=True))
        if not isinstance(item.get(LABEL), torch.Tensor | np.ndarray):
            return item, {}
        item[LABEL] = smallest_integers(item[LABEL])
        indices = {LABEL: foreground_indices(item[LABEL])}
        if len(annotated := annotated_indices(item[LABEL])):
            indices[f"{LABEL}_annotated"] = [annotated]
        return item, indices


def _unwritable(path: Path, cause: str | None) -> DataError:
    remedy = "free space there, or choose another folder with store_dir"
    return DataError(f"the preprocessed case cannot be stored: {cause}", file=path.parent, remedy=remedy)


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
