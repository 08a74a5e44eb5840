"""How an image comes to the device of the network, and what is done to it there before the network sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor, list_data_collate

logger = logging.getLogger(__name__)

PREPROCESSING_COPIES = 12
"""Float32 images that resampling needs at once, most of them float64: image, result, three coordinates a voxel."""

PREPROCESSING_SHARE = 0.25
"""Of the free memory of the device; the rest stays for the network, which computes the case before meanwhile."""


def preprocess_on(
    device: torch.device, steps: Callable[[dict[Any, Any]], dict[Any, Any]], item: dict[Any, Any]
) -> dict[Any, Any]:
    """Run the steps between file and network on the device of the network, on the CPU where they do not run there.

    The cores beside a GPU then only read. An image that might not leave room for the network stays on the CPU; so does
    one for which a step fails on the device, as a step of MONAI's does that knows no GPU.

    Args:
        device: of the network.
        steps: from one item to another; they leave the given item as it is.
        item: with `image` as it was read, `(C, *spatial)`, and what stands beside it.

    Returns:
        What the steps give; `image` lies on the device, or on the CPU.
    """
    image = item.get("image")
    if device.type == "cpu" or not isinstance(image, torch.Tensor) or not _has_room(device, image.numel()):
        return steps(item)
    try:
        return steps({**item, "image": image.to(device)})
    except RuntimeError as error:  # MONAI wraps what its steps raise; what is wrong with the image fails below as well
        logger.info("this image is preprocessed on the CPU: %s", error)
    return steps(item)


def _has_room(device: torch.device, voxels: int) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return PREPROCESSING_COPIES * torch.float32.itemsize * voxels <= PREPROCESSING_SHARE * (free + unused)


def pinned(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The image in memory from which a GPU fetches it by itself; for a CPU, or where it is on a GPU, the image itself.

    Pinning copies, so it belongs into the stage of reading, beside which the network computes. Where the system gives
    no such memory the image stays where it is, and its transfer takes longer.

    Args:
        image: preprocessed, with its metadata.
        device: of the network.
    """
    if device.type != "cuda" or image.device.type != "cpu":
        return image
    try:
        return image.pin_memory()
    except RuntimeError as error:
        logger.debug("image is not pinned: %s", error)
        return image


def batch_on(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A batch of one image on the device, as a data loader would collate it.

    A pinned image must go first: collating copies it, into memory that is not pinned. The GPU's work on the batch waits
    for the transfer by itself.
    """
    moved = image.to(device, non_blocking=device.type == "cuda" and image.is_pinned())
    # collated as a DataLoader does, which is what inferers meet in MONAI's engine
    batch: torch.Tensor = list_data_collate([moved]) if isinstance(image, MetaTensor) else moved[None]
    return batch
