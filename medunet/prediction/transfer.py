"""How a preprocessed image comes to the device of the network."""

from __future__ import annotations

import logging

import torch
from monai.data import MetaTensor, list_data_collate

logger = logging.getLogger(__name__)


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
