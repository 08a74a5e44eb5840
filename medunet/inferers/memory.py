"""Memory of a pass of a network, and free memory of a device."""

import math
import weakref
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medunet.runtime.cuda import is_out_of_memory

from .tiling import Shapes

WORKSPACE = 1.5
"""Factor for memory that Python does not see: padded channels and reordered copies of the convolution library, and what
the allocator keeps."""

AUTOCAST_SHARE = 0.6  # memory of a pass under autocast: activations have half the bytes, some stay in float32

MEASURED_VOXELS = 2**21  # of the window whose pass is measured on CUDA
FRAGMENTS = 1.2  # factor for what the allocator of CUDA cannot use of its blocks, and cuDNN's larger workspaces

ASSUMED_NUMBERS = 128.0  # per voxel of a window, in the largest tensor of a third-party network
MOST_NUMBERS = 2**31 - 1
"""Numbers of a tensor for CUDA kernels that count in 32 bits, such as that of channels-last `max_pool3d`."""
# operations that count further, convolutions from cuDNN 9.3 on
_IN_64_BITS = ("aten.convolution", "aten.cat", "aten.relu", "aten.add")
CUDNN_64_BITS = 90300

SHARE_OF_FREE = 0.6  # of the free memory for "auto": the volume, the results and other programs need the rest

# bytes per voxel of a window, by network: estimated, and measured on CUDA; the largest tensor's numbers per voxel
_ESTIMATED: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
_MEASURED: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
_NUMBERS: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


def free_memory(device: torch.device) -> int:
    """Return the bytes that a pass may take on a device: `SHARE_OF_FREE` of the free memory."""
    if device.type == "cuda":
        # memory that torch's allocator keeps is free for the next pass, too
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = psutil.virtual_memory().available
    return int(free * SHARE_OF_FREE)


def bytes_per_voxel(network: Any, module: torch.nn.Module, shapes: Shapes, channels: int, on: torch.device) -> float:
    """Return the bytes of a pass per voxel of its window on a device: measured once on CUDA, else estimated.

    `network` is what is called, such as a `FastNetwork` of `module`.
    """
    if on.type == "cuda" and (network in _MEASURED or _measure(network, shapes, channels, on)):
        return _MEASURED[network]
    if module not in _ESTIMATED:
        probe = _window(shapes, [4 * stride for stride in shapes.total_stride])
        _ESTIMATED[module] = peak_bytes(module, (1, channels, *probe)) / math.prod(probe)
    cost = _ESTIMATED[module] * WORKSPACE
    return cost * AUTOCAST_SHARE if torch.is_autocast_enabled(on.type) else cost


def _measure(network: Any, shapes: Shapes, channels: int, device: torch.device) -> bool:
    """Measure a pass; return whether there was room for it."""
    axes = len(shapes.total_stride)
    window = _window(shapes, [round(MEASURED_VOXELS ** (1 / axes))] * axes)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.no_grad():
            network(torch.zeros(1, channels, *window, device=device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False  # not stored: another program may use the memory only now
    taken = torch.cuda.max_memory_allocated(device) - before
    _MEASURED[network] = taken / math.prod(window) * FRAGMENTS
    return True


def most_voxels(module: Any, channels: int, device: torch.device) -> float:
    """Return the voxels of a window up to which CUDA kernels count rightly; without limit on a CPU."""
    if device.type != "cuda":
        return math.inf
    if hasattr(module, "shapes") and module not in _NUMBERS:
        probe = _window(module.shapes, [16 * stride for stride in module.shapes.total_stride])
        _NUMBERS[module] = max(1, _metered(module, (1, channels, *probe)).largest) / math.prod(probe)
    return MOST_NUMBERS / _NUMBERS.get(module, ASSUMED_NUMBERS)


def _window(shapes: Shapes, output: Sequence[int]) -> tuple[int, ...]:
    return shapes.next_valid_input(shapes.input_for_output(output))


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
    return _metered(network, window).peak


def _metered(network: torch.nn.Module, window: Sequence[int]) -> "_Meter":
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    with torch.no_grad(), _Meter() as meter:
        image = torch.empty(tuple(window), dtype=dtype, device="meta")
        functional_call(network, weights, (image,))
    return meter


class _Meter(TorchDispatchMode):
    """Adds up the bytes of all live tensors; `largest` has the most numbers that a 32-bit kernel reads or writes."""

    def __init__(self) -> None:
        super().__init__()
        self.living = self.peak = self.largest = 0

    def _release(self, size: int) -> None:
        self.living -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        is_old = (torch.backends.cudnn.version() or 0) < CUDNN_64_BITS
        if is_old or not str(func).startswith(_IN_64_BITS):
            sizes = [leaf.numel() for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            self.largest = max([self.largest, *sizes])
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in given and not func.is_view:
                self.living += leaf.nbytes
                self.peak = max(self.peak, self.living)
                weakref.finalize(leaf, self._release, leaf.nbytes)
        return result
