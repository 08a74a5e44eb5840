"""Seconds per stage of a prediction."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch


@dataclass
class StageSeconds:
    """Seconds of work per stage of one case; stages of different cases overlap, so sums may exceed the wall time.

    Args:
        read: from the file to voxels.
        preprocess: to the network's grid and intensities.
        network: forward passes; the whole inferer unless the two are timed separately.
        stitch: the inferer around the forward passes: padding, stitching, restoring labels.
        restore: back to the source grid, classes to label values.
        write: to the file.
    """

    read: float = 0.0
    preprocess: float = 0.0
    network: float = 0.0
    stitch: float = 0.0
    restore: float = 0.0
    write: float = 0.0

    @property
    def total(self) -> float:
        """Total over all stages."""
        return sum(getattr(self, stage) for stage in STAGES)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage, even if the block raises."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - begin)

    @contextmanager
    def measure_inferer(self, network: torch.nn.Module, device: torch.device) -> Iterator[None]:
        """Add the time of the network's forward passes to `network`, and the rest of the block to `stitch`."""
        begins: list[float] = []
        forward = 0.0

        def now() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter()

        def enter(*_: object) -> None:
            begins.append(now())

        def leave(*_: object) -> None:
            nonlocal forward
            forward += now() - begins.pop()

        handles = (network.register_forward_pre_hook(enter), network.register_forward_hook(leave))
        begin = now()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.network += forward
            self.stitch += now() - begin - forward


STAGES: tuple[str, ...] = tuple(field.name for field in fields(StageSeconds))
