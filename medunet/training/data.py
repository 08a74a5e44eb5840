"""Data on its way to the network: prepared before, waited for, and workers that die with a reason."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.data
import torch
from ignite.engine import Engine, Events

from medunet import errors
from medunet.datasets import image_digest, prune_store
from medunet.errors import DataError, MedunetError
from medunet.files import write_atomically
from medunet.inferers.memory import parse_memory

logger = logging.getLogger(__name__)

TRAINED_ON_NAME = "trained_on.json"
"""Digest of the image by case name, of the cases that a run trains on; in its output folder."""

STARVED = 0.2
"""Share of the time spent waiting for data above which a word is said about it."""


class DataLoader(monai.data.DataLoader):
    """MONAI's ``DataLoader`` whose dead and failed workers are typed errors.

    Workers stay from epoch to epoch unless `persistent_workers` is given. The seeds that PyTorch draws for them come
    from a generator of their own: with and without workers the network's dropout sees the same random numbers.

    Args:
        dataset: what to load from.
        num_workers: processes that load; 0 loads in this one.
        **kwargs: see ``monai.data.DataLoader``.

    Raises:
        MedunetError: while iterating; what a worker raised, with the worker's traceback as its cause, or a DataError
            for a worker that was killed. Errors that have no type of medunet pass as they are.
    """

    def __init__(self, dataset: Any, num_workers: int = 0, **kwargs: Any) -> None:
        options = {"persistent_workers": num_workers > 0, "generator": torch.Generator(), **kwargs}
        super().__init__(dataset, num_workers, **options)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over batches."""
        try:
            yield from super().__iter__()
        except Exception as error:
            if (typed := worker_error(error)) is None:
                raise
            raise typed from error


def worker_error(error: Exception) -> MedunetError | None:
    """The typed error for what a data loader with workers raises; None for errors of another kind.

    Example:
        >>> killed = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")
        >>> type(worker_error(killed)).__name__
        'DataError'
    """
    text = str(error)
    if "DataLoader worker (pid" in text:
        return DataError(
            "a process that prepares patches has died",
            received=" ".join(text.split()),
            remedy="most often memory ran out: lower num_workers or batch_size; num_workers 0 shows other reasons",
        )
    # PyTorch sends the type and the formatted traceback; the types beneath MONAI's RuntimeError are in the latter
    found = re.findall(r"^medunet\.errors\.(\w+): (.*)$", text, flags=re.MULTILINE)
    if not found or "in DataLoader worker process" not in text:
        return None
    name, message = found[0]
    kind = getattr(errors, name, MedunetError)
    return kind(message)


class DataHandler:
    """Prepares data sets before the first step, and measures how long the network waits for data.

    The share of the epoch's steps spent waiting is left in ``engine.state.data_wait``, for :class:`HistoryHandler`.

    Args:
        datasets: those with a method ``prepare()`` (:class:`medunet.datasets.StoreDataset`) are prepared; the first
            one is trained on.
        folder: gets ``trained_on.json``, by which an evaluation recognises the cases that the run was trained on;
            None writes nothing.
        is_writer: False on all but the first process.
        store_dir: where the data sets keep preprocessed cases.
        store_limit: size such as ``50GB``; of a larger store the cases go that were not used for longest. None: none.
    """

    def __init__(
        self,
        datasets: Sequence[Any] = (),
        *,
        folder: str | None = None,
        is_writer: bool = True,
        store_dir: str | None = None,
        store_limit: str | int | None = None,
    ) -> None:
        self.datasets = tuple(datasets)
        self.folder = Path(folder) if folder is not None and is_writer else None
        self.store_dir = store_dir
        self.store_limit = None if store_limit is None else parse_memory(store_limit)
        self._waiting = 0.0
        self._asked = 0.0
        self._total = 0.0
        self._warned = False

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, before its history handler."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.batch_asked)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.batch_given)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step_done)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Any) -> None:
        """Prepare.

        Raises:
            DataError: the cases that are trained on have no voxel of any class.
        """
        for dataset in self.datasets:
            if hasattr(dataset, "prepare"):
                dataset.prepare()
        if self.datasets and hasattr(self.datasets[0], "has_foreground") and not self.datasets[0].has_foreground():
            raise DataError(
                "a training case must have a voxel of a class",
                received=f"{len(self.datasets[0])} cases, all of them background",
                remedy="look at the labels and their values with `medunet check`",
            )
        if self.folder is not None and self.datasets:
            write_atomically(self.folder / TRAINED_ON_NAME, json.dumps(_digests(self.datasets[0]), indent=1))
        if self.store_limit is not None:
            freed = prune_store(self.store_dir, unused_days=None, max_bytes=self.store_limit).freed
            logger.info("the store was pruned: %.1f GB freed", freed / 1e9)

    def epoch_started(self, engine: Any) -> None:
        """Begin to count."""
        self._waiting = self._total = 0.0

    def batch_asked(self, engine: Any) -> None:
        """Start the clock."""
        self._asked = time.perf_counter()

    def batch_given(self, engine: Any) -> None:
        """The wait is over."""
        self._waiting += time.perf_counter() - self._asked

    def step_done(self, engine: Any) -> None:
        """The step, with its wait, is over."""
        self._total += time.perf_counter() - self._asked

    def epoch_completed(self, engine: Any) -> None:
        """Leave the share."""
        share = self._waiting / self._total if self._total else 0.0
        engine.state.data_wait = share
        if share > STARVED and engine.state.epoch > 1 and not self._warned:
            logger.warning("the network waits for data %.0f %% of the time: raise num_workers", 100 * share)
            self._warned = True


def _digests(dataset: Any) -> dict[str, str]:
    items = [item for item in getattr(dataset, "data", ()) if isinstance(item, Mapping) and "image" in item]
    return {str(item.get("name", "")): image_digest(item["image"]) for item in items}
