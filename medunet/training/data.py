"""Data for the network: sampling, loading, preparation before the first step, and intensity augmentation."""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import monai.data
import psutil
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from torch.utils.data import Sampler

from medunet import errors
from medunet.datasets import image_digest, prune_store
from medunet.errors import DataError, MedunetError
from medunet.files import write_atomically
from medunet.transforms import BatchIntensity
from medunet.units import GB, parse_size

logger = logging.getLogger(__name__)

TRAINED_ON_NAME = "trained_on.json"  # digest of the image of each training case, by case name
STARVED = 0.2  # share of the time spent waiting for data above which a warning is logged
MAX_WORKERS = 32  # processes that load data for one GPU; more of them only take memory
SEEDS = 2**32  # exclusive bound of the seeds that NumPy takes


class Draw(int):
    """An index of a data set with the seed of its random transforms; a plain int where seeds are ignored."""

    seed: int

    def __new__(cls, index: int, seed: int = 0) -> "Draw":
        """Create the index; unpickling restores the seed later."""
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw


class RepeatSampler(Sampler[int]):
    """Draw all indices in random order, repeatedly, until an epoch has its number of samples.

    The order depends on seed, epoch and rank only, so a resumed run sees the same one. Several processes share one
    order and take ``num_samples`` each. Every index is a `Draw`: patches do not depend on the number of workers.

    Args:
        length: number of items in the data set.
        num_samples: samples per epoch and process.
        seed: any number.
        rank: rank of this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, *, num_samples: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the order of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples per epoch of this process."""
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """Draw this process's share of the epoch."""
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        total = self.num_samples * self.world_size
        rounds = range(0, total, self.length)
        order = torch.cat([torch.randperm(self.length, generator=generator) for _ in rounds])[:total]
        seeds = torch.randint(SEEDS, (total,), generator=generator)
        pairs = torch.stack([order, seeds], dim=1)[self.rank :: self.world_size].tolist()
        return (Draw(index, seed) for index, seed in pairs)


def loader_workers(device: torch.device) -> int:
    """Return how many processes load data: none on a CPU, whose cores the network needs; on a GPU all cores but two."""
    if device.type == "cpu":
        return 0
    cores = len(psutil.Process().cpu_affinity()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun
    return min(max(1, cores - 2), MAX_WORKERS)


class DataLoader(monai.data.DataLoader):
    """MONAI's ``DataLoader`` with typed errors for dead and failed workers.

    Workers live from epoch to epoch unless `persistent_workers` is given. PyTorch draws their seeds from a separate
    generator, so the network's dropout sees the same random numbers with and without workers.

    Args:
        dataset: the data set to load from.
        num_workers: processes that load; 0 loads in this one.
        **kwargs: arguments of ``monai.data.DataLoader``.

    Raises:
        MedunetError: While iterating: the typed error of a worker, or a DataError for a worker that was killed.
    """

    def __init__(self, dataset: Any, num_workers: int = 0, **kwargs: Any) -> None:
        options = {"persistent_workers": num_workers > 0, "generator": torch.Generator(), **kwargs}
        super().__init__(dataset, num_workers, **options)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over batches."""
        try:
            yield from super().__iter__()
        except Exception as error:
            text = str(error)
            if "DataLoader worker (pid" in text:
                remedy = "usually memory ran out: lower num_workers or batch_size; num_workers 0 shows other reasons"
                text = " ".join(text.split())
                raise DataError("a process that prepares patches has died", received=text, remedy=remedy) from error
            # PyTorch sends the type and the formatted traceback, which has the types beneath MONAI's RuntimeError
            match = re.search(r"^medunet\.errors\.(\w+): (.*)$", text, flags=re.MULTILINE)
            if match is None or "in DataLoader worker process" not in text:
                raise
            kind: type[MedunetError] = getattr(errors, match[1], MedunetError)
            raise kind(match[2]) from error


class DataHandler:
    """Prepare data sets before the first step, and measure how long the network waits for data.

    ``engine.state.data_wait`` is the share of an epoch's steps spent waiting; :class:`HistoryHandler` records it.

    Args:
        datasets: the training data set first; each with a method ``prepare()``, such as
            :class:`medunet.datasets.StoreDataset`, is prepared.
        folder: gets ``trained_on.json``, by which an evaluation recognises training cases; None writes nothing.
        is_writer: False on all but the first process.
        store_dir: where the data sets keep preprocessed cases.
        store_limit: size such as ``50GB``; the least recently used cases of a larger store are removed. None: no limit.
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
        self.store_limit = None if store_limit is None else parse_size(store_limit)
        self._waiting, self._total = Timer(), Timer()
        self._warned = False

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, before its history handler."""
        engine.add_event_handler(Events.STARTED, self.start)
        for timer, end in ((self._waiting, Events.GET_BATCH_COMPLETED), (self._total, Events.ITERATION_COMPLETED)):
            timer.attach(engine, start=Events.EPOCH_STARTED, resume=Events.GET_BATCH_STARTED, pause=end)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def start(self, engine: Any) -> None:
        """Prepare the data sets.

        Raises:
            DataError: No training case has a voxel of a class.
        """
        for dataset in self.datasets:
            if hasattr(dataset, "prepare"):
                dataset.prepare()
        if self.datasets and hasattr(self.datasets[0], "has_foreground") and not self.datasets[0].has_foreground():
            received = f"{len(self.datasets[0])} cases, all of them background"
            raise DataError("a training case must have a voxel of a class", received=received)
        if self.folder is not None and self.datasets:
            items = [item for item in getattr(self.datasets[0], "data", ()) if "image" in item]
            digests = {str(item.get("name", "")): image_digest(item["image"]) for item in items}
            write_atomically(self.folder / TRAINED_ON_NAME, json.dumps(digests, indent=1))
        if self.store_limit is not None:
            removed = prune_store(self.store_dir, unused_days=None, max_bytes=self.store_limit)
            logger.info(
                "the cache of preprocessed cases was pruned: %.1f GB freed",
                sum(case.nbytes for case, _ in removed) / GB,
            )

    def _epoch_completed(self, engine: Any) -> None:
        engine.state.data_wait = share = self._waiting.value() / max(self._total.value(), 1e-9)
        if share > STARVED and engine.state.epoch > 1 and not self._warned:
            logger.warning("the network waits for data %.0f %% of the time: raise num_workers", 100 * share)
            self._warned = True


class IntensityHandler:
    """Augment the intensities of every batch on the network's device, before the network sees it.

    The random numbers depend on seed, rank and iteration only, so a resumed training run sees the same batches.

    Args:
        steps: dictionary transforms that :class:`medunet.transforms.BatchIntensity` supports; may be empty.
        seed: any non-negative number.
        rank: rank of this process, so that processes draw different numbers.

    Raises:
        ConfigError: A step does not work on batches.
    """

    def __init__(self, steps: Sequence[Any] = (), *, seed: int = 0, rank: int = 0) -> None:
        self.change = BatchIntensity(steps)
        self.seed = seed
        self.rank = rank

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Replace the images of the batch."""
        if self.change.steps:
            state = engine.state
            images = state.batch["image"].to(state.device, non_blocking=True)
            state.batch["image"] = self.change(images, seed=(self.seed, self.rank, state.iteration))
