"""What the sections of bench_inference.py share: the command line, the way a row is kept, and a stop watch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """The command line, for all sections."""

    data: Path | None
    run: Path | None
    work: Path
    quick: bool
    repeats: int
    longest: float
    enough: float
    only: str
    cases: int
    training_steps: int
    settings: tuple[str, ...]
    device: torch.device
    without: tuple[str, ...] = ()
    done: frozenset[str] = frozenset()

    def wants(self, *keys: str) -> bool:
        """Whether `--only` leaves one of these measurements in and it has not been made."""
        return any(self.only.lower() in key.lower() and key not in self.done for key in keys)


Put = Callable[[str, dict[str, Any]], None]
"""Keeps a row under its key, at once, so that an interrupted measurement goes on."""


def synchronise() -> None:
    """Wait for the device, so that a clock on the host tells the truth."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of several calls, after one untimed."""
    times = []
    with torch.inference_mode():
        work()
        for _ in range(repeats):
            synchronise()
            begun = time.perf_counter()
            work()
            synchronise()
            times.append(time.perf_counter() - begun)
    return times


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The middle one of several calls, after one untimed."""
    return statistics.median(seconds_of(work, repeats))
