"""Memory of a pass of a network, and free memory of a device."""

import weakref
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WORKSPACE = 1.5
"""Factor for memory that Python does not see: padded channels and reordered copies of the convolution library, and what
the allocator keeps."""

SHARE_OF_FREE = 0.6  # of the free memory for "auto": the volume, the results and other programs need the rest

# messages about exhausted memory that are not `torch.OutOfMemoryError`, in lower case
_OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "could not create a memory object"),
    "could not create a primitive",  # for its scratch memory; also for other reasons, then smaller tiles fail as well
    *("cudnn_status_alloc_failed", "cublas_status_alloc_failed"),
    "unable to find an engine",  # cuDNN, if no algorithm's workspace fits
)


def free_memory(device: torch.device) -> int:
    """Return the bytes that a pass may take on a device: `SHARE_OF_FREE` of the free memory."""
    if device.type == "cuda":
        # memory that torch's allocator keeps is free for the next pass, too
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = psutil.virtual_memory().available
    return int(free * SHARE_OF_FREE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory has run out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def peak_bytes(network: torch.nn.Module, window: Sequence[int]) -> int:
    """Return the peak bytes of a pass: input, output and activations, without weights.

    The pass runs on torch's meta device, which tracks sizes and computes nothing.

    Args:
        network: in evaluation mode.
        window: `(B, C, *spatial)` of its input.

    Examples:
        >>> peak_bytes(torch.nn.Conv2d(1, 4, 3, padding=1), (1, 1, 100, 100))  # input and output, float32
        200000
    """
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    with torch.no_grad(), _Meter() as meter:
        image = torch.empty(tuple(window), dtype=dtype, device="meta")
        functional_call(network, weights, (image,))
    return meter.peak


class _Meter(TorchDispatchMode):
    """Adds up the bytes of all live tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.living = 0
        self.peak = 0

    def _release(self, size: int) -> None:
        self.living -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in given and not func.is_view:
                self.living += leaf.nbytes
                self.peak = max(self.peak, self.living)
                weakref.finalize(leaf, self._release, leaf.nbytes)
        return result
