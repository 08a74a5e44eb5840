"""What the sections of `scripts.bench.inference` share: the command line, and how a row is stored."""

from __future__ import annotations

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
