"""Running parts of a chain of transforms, on the device of the network if possible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, LoadImage, LoadImaged

from medunet.errors import ConfigError, find_cause
from medunet.io import MedunetReader
from medunet.io.isolation import shared_process

logger = logging.getLogger(__name__)

PREPROCESSING_COPIES = 12
"""Float32 images that resampling holds at once, most of them float64: image, result, three coordinates per voxel."""

PREPROCESSING_SHARE = 0.25
"""Share of the device's free memory for preprocessing; the network computes the previous case in the rest."""


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise the typed error that MONAI's transforms wrap into a RuntimeError."""
    try:
        yield
    except Exception as failure:
        cause = find_cause(failure)
        if cause is None or cause is failure:
            raise
        raise cause from failure


def steps_of(transform: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """Return the steps of a Compose; any other transform is the only step."""
    return tuple(transform.transforms) if isinstance(transform, Compose) else (transform,)


def steps_up_to(transform: Callable[..., Any], kinds: tuple[type, ...], *, last: bool) -> int:
    """Return the number of steps through the last, or before the first, of some kinds; 0 or all if there is none."""
    steps = transform.transforms if isinstance(transform, Compose) else ()
    places = [index for index, step in enumerate(steps) if isinstance(step, kinds)]
    if last:
        return places[-1] + 1 if places else 0
    return places[0] if places else len(steps)


def run_steps(transform: Callable[..., Any], item: Any, *, start: int = 0, end: int | None = None) -> Any:
    """Run some steps of a Compose; any other transform runs as step 0."""
    if isinstance(transform, Compose):
        return transform(item, start=start, end=end)
    return transform(item) if start == 0 and end is None else item


def isolate_reading(preprocessing: Callable[..., Any], isolated: bool) -> None:
    """Set `isolated` of every reader in the preprocessing, and start the child process.

    Raises:
        ConfigError: the bundle does not read images by :class:`medunet.io.MedunetReader`.
    """
    loaders = [step._loader if isinstance(step, LoadImaged) else step for step in steps_of(preprocessing)]
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


def preprocess_on(
    device: torch.device, steps: Callable[[dict[Any, Any]], dict[Any, Any]], item: dict[Any, Any]
) -> dict[Any, Any]:
    """Run the steps between file and network on the device of the network, or on the CPU if they fail there.

    An image that could leave too little memory for the network stays on the CPU.

    Args:
        device: of the network.
        steps: function from one item to another that does not change the given item.
        item: `image` as it was read, `(C, *spatial)`, and what belongs to it.
    """
    image = item.get("image")
    if device.type == "cpu" or not isinstance(image, torch.Tensor) or not _has_room(device, image.numel()):
        return steps(item)
    try:
        return steps({**item, "image": image.to(device)})
    except RuntimeError as error:  # MONAI wraps what its steps raise; an invalid image fails on the CPU as well
        logger.info("this image is preprocessed on the CPU: %s", error)
    return steps(item)


def _has_room(device: torch.device, voxels: int) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return PREPROCESSING_COPIES * torch.float32.itemsize * voxels <= PREPROCESSING_SHARE * (free + unused)


def pinned(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a preprocessed image in memory that a GPU fetches by itself; unchanged if there is no need or no room.

    Pinning copies, so it belongs to the stage of reading, during which the network computes another case.
    """
    if device.type != "cuda" or image.device.type != "cpu":
        return image
    try:
        return image.pin_memory()
    except RuntimeError as error:
        logger.debug("image is not pinned: %s", error)
        return image


def batch_on(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a batch of one image on the device, collated as a DataLoader does in MONAI's engine.

    A pinned image moves before it is collated, because collating copies it into memory that is not pinned.
    """
    moved = image.to(device, non_blocking=device.type == "cuda" and image.is_pinned())
    batch: torch.Tensor = list_data_collate([moved]) if isinstance(image, MetaTensor) else moved[None]
    return batch
