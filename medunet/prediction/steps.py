"""Running parts of a chain of transforms, on the device of the network if possible."""

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

PREPROCESSING_COPIES = 12  # float32 images that resampling holds at once: image, result, coordinates in float64
PREPROCESSING_SHARE = 0.25  # of the device's free memory; the network computes the previous case in the rest


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


def as_compose(transform: Callable[..., Any]) -> Compose:
    """Return a chain of transforms; any other transform is its only step."""
    return transform if isinstance(transform, Compose) else Compose([transform])


def steps_up_to(transform: Compose, kind: type, *, last: bool) -> int:
    """Return the number of steps up to and including the last of a kind, or before the first."""
    places = [index for index, step in enumerate(transform.transforms) if isinstance(step, kind)]
    return places[-1] + 1 if last else places[0]


def isolate_reading(preprocessing: Compose, isolated: bool) -> None:
    """Set `isolated` of every reader in the preprocessing, and start the child process."""
    loaders = [step._loader if isinstance(step, LoadImaged) else step for step in preprocessing.transforms]
    readers = [reader for loader in loaders if isinstance(loader, LoadImage) for reader in loader.readers]
    ours = [reader for reader in readers if isinstance(reader, MedunetReader)]
    if isolated and not ours:
        received = ", ".join(type(reader).__name__ for reader in readers) or "no LoadImage"
        raise ConfigError("reading cannot be isolated: the bundle does not use MedunetReader", received=received)
    for reader in ours:
        reader.isolated = isolated
    if isolated:
        shared_process().start()


def preprocess_on(
    device: torch.device, steps: Callable[[dict[Any, Any]], dict[Any, Any]], item: dict[Any, Any]
) -> dict[Any, Any]:
    """Run the steps between file and network on the network's device, or on the CPU if they fail or have no room there.

    `steps` must not change the given item, whose `image` is `(C, *spatial)`.
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
    """Return an image in pinned memory, from which a GPU copies asynchronously; unchanged if not needed or possible."""
    if device.type != "cuda" or image.device.type != "cpu":
        return image
    try:
        return image.pin_memory()
    except RuntimeError as error:
        logger.debug("image is not pinned: %s", error)
        return image


def batch_on(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a batch of one image on the device, collated as a DataLoader does in MONAI's engine."""
    # moved first, because collating copies into memory that is not pinned
    moved = image.to(device, non_blocking=device.type == "cuda" and image.is_pinned())
    return list_data_collate([moved]) if isinstance(image, MetaTensor) else moved[None]
