"""The network on its device: memory on a GPU, and the number of threads that read and write for it."""

import logging
import os
from collections.abc import Sequence
from traceback import clear_frames
from typing import Any

import torch
from monai.inferers import Inferer

from medunet.inferers import OverlapTileInferer
from medunet.runtime.cuda import is_out_of_memory

from .steps import batch_on

logger = logging.getLogger(__name__)

MAX_THREADS = 6  # for a GPU; reading and writing a CT take 4 to 5 times as long as its network on a fast one


def thread_count(device: torch.device) -> int:
    """Return the number of threads that read, and that write: one for a CPU, which the network keeps busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device.type == "cpu" else max(1, min(MAX_THREADS, cores // 2))


def prepare_tiles(inferer: Any, network: torch.nn.Module, device: torch.device, *, size: Sequence[int]) -> None:
    """Measure a pass on CUDA before other threads use its memory; put windows there wherever an image is."""
    while hasattr(inferer, "inferer"):
        inferer = inferer.inferer
    if device.type == "cuda" and isinstance(inferer, OverlapTileInferer):
        inferer.sw_device = inferer.sw_device or device
        inferer.plan(size[1:], network, in_channels=size[0])


def infer(inferer: Inferer, image: torch.Tensor, network: torch.nn.Module, device: torch.device) -> Any:
    """Evaluate a network on an image; if a GPU's memory runs out, the image and its logits stay in that of the CPU."""
    try:
        return inferer(batch_on(image, device), network)
    except RuntimeError as error:
        if device.type != "cuda" or not is_out_of_memory(error):
            raise
        clear_frames(error.__traceback__)  # they hold the tensors that did not fit
    logger.warning("out of GPU memory: this image is kept in the memory of the CPU")
    torch.cuda.empty_cache()
    return inferer(batch_on(image, torch.device("cpu")), network)
