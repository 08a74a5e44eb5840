"""Where the time of a prediction goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields

import torch


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of work a stage; stages of different cases overlap, so that their sum may exceed the wall time.

    Args:
        read: from the file to voxels.
        preprocess: to the network's grid and intensities.
        network: forward passes; the whole inferer where the two were not measured apart.
        stitch: the inferer around the forward passes: padding, stitching, and restoring where it gives label maps.
        restore: back to the source grid, classes to label values.
        write: to the file.

    Example:
        >>> (StageSeconds(read=1.0, network=2.0) + StageSeconds(network=0.5)).total
        3.5
    """

    read: float = 0.0
    preprocess: float = 0.0
    network: float = 0.0
    stitch: float = 0.0
    restore: float = 0.0
    write: float = 0.0

    @property
    def total(self) -> float:
        """The sum over the stages."""
        return sum(astuple(self))

    def __add__(self, other: StageSeconds) -> StageSeconds:
        return StageSeconds(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


STAGES: tuple[str, ...] = tuple(field.name for field in fields(StageSeconds))


class Stopwatch:
    """Adds up the seconds of each stage of one case.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.measure("read"):
        ...     pass
        >>> watch.seconds.read >= 0
        True
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @property
    def seconds(self) -> StageSeconds:
        """What was measured so far."""
        return StageSeconds(**self._seconds)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage, also where the block raises."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - begun

    @contextmanager
    def measure_inferer(self, network: torch.nn.Module, device: torch.device) -> Iterator[None]:
        """As ``measure("network")``, with the time outside the network's forward passes in ``stitch``.

        A GPU is waited for around each forward pass, which costs a little of what it would do meanwhile.
        """
        begun_at: list[float] = []
        forward = 0.0

        def now() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter()

        def enter(*_: object) -> None:
            begun_at.append(now())

        def leave(*_: object) -> None:
            nonlocal forward
            forward += now() - begun_at.pop()

        handles = (network.register_forward_pre_hook(enter), network.register_forward_hook(leave))
        begun = now()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seconds["network"] += forward
            self._seconds["stitch"] += now() - begun - forward
