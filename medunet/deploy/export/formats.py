"""What all formats have in common."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from medunet.errors import ConfigError, DataError
from medunet.io.extras import import_extra

from .description import KEY
from .tile_network import TileNetwork

EXTRA_FILE = f"{KEY}.json"
"""The description, where a format takes extra files."""

Runner = Callable[[torch.Tensor], torch.Tensor]
"""`(B, C, *spatial)` float32 on the CPU to logits, float32 on the CPU."""


class ExportFormat(ABC):
    """One kind of file: how it is written, run, and read.

    Attributes:
        name: on the command line.
        suffix: ending of the file.
        program: what runs it, with its release.
    """

    name: str
    suffix: str

    @property
    @abstractmethod
    def program(self) -> str:
        """What runs the file here, with its release."""

    @abstractmethod
    def check(self) -> None:
        """Make sure that this machine can write and run it.

        Raises:
            ConfigError: a package or a device is missing.
        """

    def largest(self, network: TileNetwork) -> tuple[int, ...] | None:
        """The largest tile that its files take of a network; None for any."""
        return None

    @abstractmethod
    def write(self, network: TileNetwork, path: Path) -> None:
        """Write the network and its description; other files may come to lie beside `path`, with its stem."""

    @abstractmethod
    def open(self, path: Path) -> Runner:
        """Load a file to be run on this machine."""

    @abstractmethod
    def read_text(self, path: Path) -> str | None:
        """The description that lies in a file, as it stands there."""

    def describe(self, path: Path) -> dict[str, Any]:
        """The description that lies in a file.

        Raises:
            DataError: there is none: another program wrote the file.
        """
        text = self.read_text(path)
        if not text:
            raise DataError("the file holds no description by medunet", file=path, remedy="medunet bundle export")
        content: dict[str, Any] = json.loads(text)
        return content


def module_runner(module: Callable[[torch.Tensor], torch.Tensor]) -> Runner:
    """Run a module of torch without gradients."""

    def run(image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return module(on_cpu(image))

    return run


def to_text(description: Mapping[str, Any]) -> str:
    """A description as it is written into files."""
    return json.dumps(description, ensure_ascii=False, sort_keys=True)


def need(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, without what it has to say about deprecations of others."""
    with quiet():
        return import_extra(name, extra=extra, purpose=purpose)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: exporters use what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def on_cpu(image: torch.Tensor) -> torch.Tensor:
    """An image as runners take it.

    Raises:
        ConfigError: it lies on another device.
    """
    if image.device.type != "cpu":
        raise ConfigError("files are run on images in memory", received=image.device, expected="cpu")
    plain = image.as_tensor() if hasattr(image, "as_tensor") else image
    return plain.detach().float().contiguous()
