"""A data set that is preprocessed once and then read from disk where it is touched."""

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
from monai.config import KeysCollection
from monai.data import Dataset
from monai.transforms import RandomizableTrait, Transform
from monai.utils import ensure_tuple
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medunet.datasets.check.finding import shown
from medunet.errors import DataError, find_cause
from medunet.files import CAN_LOCK, Hold, lock
from medunet.transforms import IGNORE_INDEX, like

from .entry import MANIFEST as ENTRY_MANIFEST
from .entry import Entry, remove_remains
from .identity import code_digest, describe_source, digest
from .prune import hold_path, remove_free_locks, store_folder

logger = logging.getLogger(__name__)

MAX_INDICES = 10_000
"""Foreground voxels that are listed a class and case (40 kB); of larger classes a random sample, drawn with a seed."""

MAX_THREADS = 8
"""Cases that are preprocessed at a time, where there are as many cores: each may need a gigabyte."""


class StoreDataset(Dataset):
    """Items whose deterministic transforms are done once and kept as memory-mapped files.

    It takes the place of MONAI's `CacheDataset`: the transforms up to the first random one are applied once a case.
    But the result is kept on disk, for later trainings and for other processes too, and an item's arrays are read
    where the random transforms touch them: a patch of a CT costs the voxels of the patch.

    An entry is known by the files of the case (path, size, time of change), by the transforms with all their
    parameters, by medunet's code and by the versions of its libraries, so any change makes new entries. Entries are
    written whole or not at all; an interrupted preprocessing goes on where it was; processes that prepare the same
    data share the work; a damaged entry is made anew. Entries that nobody uses are removed by ``medunet store --prune``
    or :func:`medunet.datasets.prune_store`; the folder may also be deleted as a whole.

    Items are those of `CacheDataset`, MetaTensors included, with three exceptions: labels that hold only whole numbers
    are kept in the smallest integer type that fits, the list of applied operations for inverting is empty, and tuples
    become lists. For `RandDeformd`, an item also has the flat indices of foreground voxels as ``"<label key>_indices"``
    (one array per class, or one per channel of a label with several channels), and of annotated voxels as
    ``"<label key>_annotated_indices"`` if some are not; both are removed after the random transforms.

    An index with an attribute `seed` (:class:`medunet.training.Draw`) seeds the random transforms for its item.

    Args:
        data: items, such as :func:`medunet.datasets.datalist` gives.
        transform: a callable, a sequence of them or a ``monai.transforms.Compose``, applied to each item.
        store_dir: folder of the entries; None: `store` in medunet's cache folder (see `medunet.files.cache_folder`).
        label_keys: keys of labels.
        index_foreground: whether items get the indices of foreground voxels.
        track_meta: False gives tensors without meta data, which transforms handle faster; random ones rarely need any.
        num_workers: cases preprocessed at a time; None: one a core, at most `MAX_THREADS`.
        progress: whether :meth:`prepare` draws a bar on a terminal.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Sequence[Callable[..., Any]] | Callable[..., Any],
        *,
        store_dir: str | os.PathLike[str] | None = None,
        label_keys: KeysCollection = "label",
        index_foreground: bool = True,
        track_meta: bool = True,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(data, transform)
        self.store_dir = store_dir
        self.label_keys = tuple(str(key) for key in ensure_tuple(label_keys))
        self.index_foreground = index_foreground
        self.track_meta = track_meta
        self.num_workers = num_workers
        self.progress = progress
        self._entries: dict[int, Entry] = {}
        self._hold: Hold | None = None
        self._first_random: int | None = self.transform.get_index_of_first(
            lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform)
        )
        # now, before transforms keep anything from the items that they see
        fixed = self.transform.transforms[: self._first_random]
        self._pipeline = digest(code_digest(), fixed, self.label_keys)[:16]

    @property
    def folder(self) -> Path:
        """Folder of the entries that these transforms make."""
        return store_folder(self.store_dir) / self._pipeline

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process holds the entries for itself."""
        return {**self.__dict__, "_hold": None}

    def prepare(self) -> None:
        """Preprocess the cases that are not on disk yet, several at a time.

        Items would otherwise be preprocessed when they are asked for, one by one.

        Raises:
            DataError: no room or no right to write; of several cases that cannot be used, all of them in one error.
            Exception: what a transform raises.
        """
        self._use()
        with ThreadPoolExecutor(self._threads()) as pool:
            found = list(pool.map(self._open, range(len(self.data))))
            missing = [index for index, entry in enumerate(found) if entry is None]
            if not missing:
                return
            begun = time.perf_counter()
            logger.info("preparing %d of %d cases in %s", len(missing), len(self.data), self.folder)
            with _progress_bar(self.progress) as bar:
                task = bar.add_task("", total=len(missing))

                failures: dict[int, Exception] = {}

                def make(index: int, *, wait: bool) -> bool:
                    try:
                        done = self._make(index, wait=wait) is not None
                    except Exception as failure:  # the others are prepared all the same, and all failures told
                        failures[index] = failure
                        return True
                    if done:
                        bar.advance(task)
                    return done

                made = list(pool.map(lambda index: make(index, wait=False), missing))
                # what other processes are at comes last: by then it is done, or they have died
                others = [index for index, done in zip(missing, made, strict=True) if not done]
                for _ in pool.map(lambda index: make(index, wait=True), others):
                    pass
        remove_free_locks(self.folder)  # of a process that was killed when its case was in place
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
            entry = self._entries.get(index) or self._open(index) or self._make(index, wait=True)
            item, indices = self._load(entry)
        except (OSError, ValueError):  # removed or cut since it was opened
            self._entries.pop(index, None)
            item, indices = self._load(self._open(index) or self._make(index, wait=True))
        if self._first_random is None:
            return item
        extra = {f"{key}_indices": arrays for key, arrays in indices.items()} if self.index_foreground else {}
        result = self.transform({**item, **extra}, start=self._first_random)
        for part in result if isinstance(result, list) else [result]:
            if isinstance(part, dict):
                for key in extra:
                    part.pop(key, None)
        return result

    def _load(self, entry: Entry | None) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
        if entry is None:  # cannot be: whoever waits for the lock gets an entry
            raise DataError("no entry was made")
        return entry.load(track_meta=self.track_meta), entry.load_indices()

    def _entry_folder(self, index: int) -> Path:
        return self.folder / digest(describe_source(self.data[index]))[:32]

    def _open(self, index: int) -> Entry | None:
        """The entry if it is there and whole; it is checked once a process."""
        entry = Entry.open(self._entry_folder(index))
        if entry is not None:
            self._entries[index] = entry
            with contextlib.suppress(OSError):  # a store that others have made may be read-only
                os.utime(entry.folder / ENTRY_MANIFEST)  # the time of the last use, for pruning
        return entry

    def _use(self) -> None:
        """Keep `prune_store` away from the entries as long as this object lives."""
        if self._hold is not None:
            return
        try:
            self._make_folder(self.folder.parent)
            self._hold = Hold(hold_path(self.folder))
        except OSError as error:  # writing tells, if there is anything to write
            logger.debug("%s is not held: %s", self.folder, error)

    def _make_folder(self, folder: Path) -> None:
        # a patient's images are nobody else's, unless the folder was chosen
        folder.mkdir(mode=0o700 if self.store_dir is None else 0o777, parents=True, exist_ok=True)

    def _make(self, index: int, *, wait: bool) -> Entry | None:
        """Preprocess a case and keep it; None, unless `wait`, when somebody else is at it."""
        folder = self._entry_folder(index)
        try:
            self._make_folder(folder.parent)
            with lock(folder.with_suffix(".lock"), wait=wait) as held:
                if not held:
                    return None
                entry = self._open(index)  # somebody may have made it meanwhile
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
        indices = {}
        for key in self.label_keys:
            if isinstance(item.get(key), torch.Tensor | np.ndarray):
                item[key] = _smallest_integers(item[key])
                indices[key] = foreground_indices(item[key])
                if len(annotated := annotated_indices(item[key])):
                    indices[f"{key}_annotated"] = [annotated]
        return item, indices

    def _threads(self) -> int:
        if self.num_workers is not None:
            return max(self.num_workers, 1)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MAX_THREADS)


def foreground_indices(label: torch.Tensor | np.ndarray, *, limit: int = MAX_INDICES) -> list[np.ndarray]:
    """Flat indices of the voxels of each foreground class, in rising order.

    Args:
        label: class indices `(1, *spatial)`, of which 0 and `IGNORE_INDEX` are no foreground; or, with several
            channels, `(C, *spatial)`, one structure a channel, which may overlap.
        limit: of classes with more voxels so many are drawn, the same ones every time.

    Returns:
        One array for each class that is there, by rising index, or for each channel that is not empty.

    Example:
        >>> [one.tolist() for one in foreground_indices(np.array([[[0, 2, 1], [1, 255, 2]]]))]
        [[2, 3], [1, 5]]
    """
    array = torch.as_tensor(label).as_subclass(torch.Tensor).cpu().numpy()
    rows = [row.reshape(-1) for row in array]
    found = [np.flatnonzero((row > 0) & (row != IGNORE_INDEX)) for row in rows]
    if len(rows) == 1:
        (flat,) = found
        values = rows[0][flat]
        order = np.argsort(values, kind="stable")
        bounds = np.flatnonzero(np.diff(values[order])) + 1
        found = np.split(flat[order], bounds)
    generator = np.random.default_rng(0)
    return [_some(one, limit, generator) for one in found if len(one)]


def annotated_indices(label: torch.Tensor | np.ndarray, *, limit: int = MAX_INDICES) -> np.ndarray:
    """Return flat indices of voxels with annotation, in rising order; none if no voxel is `IGNORE_INDEX`.

    Args:
        label: as of :func:`foreground_indices`.
        limit: number of voxels; of more a sample is drawn, the same every time.

    Example:
        >>> annotated_indices(np.array([[[0, 2, 255], [255, 255, 2]]])).tolist()
        [0, 1, 5]
    """
    annotated = torch.as_tensor(label)[0].as_subclass(torch.Tensor).cpu().numpy().ravel() != IGNORE_INDEX
    if annotated.all():
        return np.empty(0, dtype=np.int64)
    return _some(np.flatnonzero(annotated), limit, np.random.default_rng(0))


def _some(indices: np.ndarray, limit: int, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.choice(indices, limit, replace=False)) if len(indices) > limit else indices


def _smallest_integers(label: Any) -> Any:
    """The label in the smallest integer type that holds it, if it holds only whole numbers."""
    plain = torch.as_tensor(label).as_subclass(torch.Tensor)
    if not plain.numel() or plain.dtype in (torch.uint8, torch.bool) or plain.is_complex():
        return label
    if plain.is_floating_point() and not bool((plain == plain.round()).all()):
        return label  # NaN is never equal to itself, infinity fails the range below
    low, high = float(plain.min()), float(plain.max())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            small = plain.to(dtype)
            if isinstance(label, np.ndarray):
                return small.numpy()
            return like(small, label)
    return label


def _joined(failures: dict[int, Exception]) -> Exception:
    """The first failure; with several that are faults of the data, one error that names them all."""
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


def _progress_bar(wanted: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal))
