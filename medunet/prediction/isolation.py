"""Letting a bundle's own preprocessing decode images in a child process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.transforms import Compose, LoadImage, LoadImaged

from medunet.errors import ConfigError
from medunet.io import MedunetReader
from medunet.io.isolation import shared_process


def isolate_reading(preprocessing: Callable[..., Any], isolated: bool) -> None:
    """Set `isolated` of every reader in the preprocessing, and start the child process.

    Raises:
        ConfigError: the bundle does not read images by :class:`medunet.io.MedunetReader`.
    """
    steps = preprocessing.transforms if isinstance(preprocessing, Compose) else (preprocessing,)
    loaders = [step._loader if isinstance(step, LoadImaged) else step for step in steps]
    readers = [reader for loader in loaders if isinstance(loader, LoadImage) for reader in loader.readers]
    ours = [reader for reader in readers if isinstance(reader, MedunetReader)]
    if isolated and not ours:
        raise ConfigError(
            "reading cannot be isolated: the bundle does not read images by MedunetReader",
            received=", ".join(type(reader).__name__ for reader in readers) or "no LoadImage",
            expected="LoadImaged(reader='medunet.io.MedunetReader')",
        )
    for reader in ours:
        reader.isolated = isolated
    if isolated:
        shared_process().start()
