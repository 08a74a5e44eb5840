"""Running parts of a chain of transforms, on the device of the network if possible."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, LoadImaged

from medunet.errors import ConfigError, DataError, DeviceError, find_cause, first_lines
from medunet.inferers import free_memory
from medunet.io import MedunetReader
from medunet.io.isolation import shared_process
from medunet.runtime.cuda import is_broken, is_out_of_memory

logger = logging.getLogger(__name__)

PREPROCESSING_COPIES = 12  # float32 images that resampling holds at once: image, result, coordinates in float64
PREPROCESSING_SHARE = 0.4  # of what `free_memory` allows; the network computes the previous case in the rest

_PREPROCESSING = threading.Lock()  # reading threads take turns on the GPU, because each needs the free memory


@contextmanager
def typed_errors(device: torch.device) -> Iterator[None]:
    """Raise the typed error that MONAI's transforms wrap, or one about exhausted memory or a broken device."""
    try:
        yield
    except Exception as failure:
        if is_broken(device):
            rule = f"{device} rejects all further work of this process; results that exist are complete"
            raise DeviceError(rule, received=first_lines(failure), remedy="add --skip-existing") from failure
        cause = find_cause(failure)
        if cause is None and is_out_of_memory(failure):
            remedy = "free memory, or use --device cpu or a smaller tile_inferer::memory"
            cause = DataError("memory is too small for this image", received=first_lines(failure), remedy=remedy)
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
    loaders = [step._loader for step in preprocessing.transforms if isinstance(step, LoadImaged)]
    readers = [reader for loader in loaders for reader in loader.readers]
    ours = [reader for reader in readers if isinstance(reader, MedunetReader)]
    if isolated and not ours:
        received = ", ".join(type(reader).__name__ for reader in readers)
        raise ConfigError("reading cannot be isolated: the bundle does not use MedunetReader", received=received)
    for reader in ours:
        reader.isolated = isolated
    if isolated:
        shared_process().start()


def preprocess_on(
    device: torch.device, steps: Callable[[dict[Any, Any]], dict[Any, Any]], item: dict[Any, Any], stream: Any = None
) -> dict[Any, Any]:
    """Run the steps between file and network on the network's device, or on the CPU if they fail or have no room there.

    `steps` must not change the given item, whose `image` is `(C, *spatial)`. On CUDA they run on a stream of their own,
    so that the network does not wait for them.
    """
    image = item.get("image")
    if device.type == "cpu" or not isinstance(image, torch.Tensor):
        return steps(item)
    with _PREPROCESSING, nullcontext() if stream is None else torch.cuda.stream(stream):
        try:
            if _has_room(device, image.numel()):
                done = steps({**item, "image": image.to(device)})
                if stream is not None:
                    stream.synchronize()  # the image is complete before another stream uses it
                return done
        except RuntimeError as error:  # MONAI wraps what its steps raise; an invalid image fails on the CPU as well
            logger.info("this image is preprocessed on the CPU: %s", error)
    return steps(item)


def _has_room(device: torch.device, voxels: int) -> bool:
    needed = PREPROCESSING_COPIES * torch.float32.itemsize * voxels
    return device.type != "cuda" or needed <= PREPROCESSING_SHARE * free_memory(device)


def batch_on(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a batch of one image on the device, collated as a DataLoader does in MONAI's engine."""
    moved = image.to(device)
    return list_data_collate([moved]) if isinstance(image, MetaTensor) else moved[None]
