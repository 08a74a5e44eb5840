"""Letting a bundle's own preprocessing decode images in a child process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.transforms import Compose, LoadImage, LoadImaged

from medunet.errors import ConfigError
from medunet.io import MedunetReader
from medunet.io.isolation import shared_process


def isolate_reading(preprocessing: Callable[..., Any], isolated: bool) -> None:
    """Set `isolated` of every reader in some preprocessing; the child begins to load its programs.

    Raises:
        ConfigError: the bundle reads by something else than :class:`medunet.io.MedunetReader`.
    """
    steps = preprocessing.transforms if isinstance(preprocessing, Compose) else (preprocessing,)
    loaders = [step._loader if isinstance(step, LoadImaged) else step for step in steps]
    readers = [reader for loader in loaders if isinstance(loader, LoadImage) for reader in loader.readers]
    # LoadImage tries the reader that was named last first, and keeps MONAI's own behind it
    ours = [reader for reader in readers if isinstance(reader, MedunetReader)]
    if isolated and not ours:
        raise ConfigError(
            "the bundle does not read by medunet, so that reading cannot be isolated",
            received=", ".join(type(reader).__name__ for reader in readers) or "no LoadImage",
            expected="LoadImaged(reader='medunet.io.MedunetReader')",
        )
    for reader in ours:
        reader.isolated = isolated
    if isolated:
        shared_process().start()
