"""A sampler for few images and many patches, alone or in several processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

SEEDS = 2**32
"""Exclusive bound of the seeds: what NumPy takes."""


class Draw(int):
    """An index of a data set with the seed of the random transforms for this one sample.

    To whom knows no seeds it is the index. :class:`medunet.datasets.StoreDataset` seeds its transforms with it.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> Draw:
        """Make the index."""
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int]]:
        """Worker processes get the seed as well."""
        return Draw, (int(self), self.seed)


class RepeatSampler(Sampler[int]):
    """Indices in random order, all once, then all again, until an epoch's number of samples is reached.

    What is drawn depends on seed, epoch and rank only, so a resumed training sees the same order. With several
    processes each takes its own part of one common order, ``num_samples`` each. Every index is a `Draw`: its seed
    makes the patch the same whichever worker cuts it, and however many there are.

    Args:
        length: number of items in the dataset.
        num_samples: samples an epoch and process.
        seed: any number.
        rank: of this process.
        world_size: number of processes.

    Example:
        >>> sampler = RepeatSampler(3, num_samples=6)
        >>> sorted(sampler)
        [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, length: int, *, num_samples: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch that comes."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples an epoch of this process."""
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """Draw this process's share of the epoch."""
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        total = self.num_samples * self.world_size
        rounds = -(-total // self.length)
        order = torch.cat([torch.randperm(self.length, generator=generator) for _ in range(rounds)])[:total]
        seeds = torch.randint(SEEDS, (total,), generator=generator)
        pairs = torch.stack([order, seeds], dim=1)[self.rank :: self.world_size].tolist()
        return (Draw(index, seed) for index, seed in pairs)
