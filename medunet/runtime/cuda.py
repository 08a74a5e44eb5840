"""What CUDA needs and a CPU does not: exhausted memory, broken devices, asynchronous copies, cuDNN's timed kernels."""

import contextlib
from collections.abc import Iterator

import torch

# messages about exhausted memory that are not `torch.OutOfMemoryError`, in lower case
_OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "could not create a memory object"),
    "could not create a primitive",  # for its scratch memory; also for other reasons, then smaller tiles fail as well
    *("cudnn_status_alloc_failed", "cublas_status_alloc_failed"),
    "unable to find an engine",  # cuDNN, if no algorithm's workspace fits
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory has run out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def is_broken(device: torch.device) -> bool:
    """Return whether a device rejects all further work of this process, as CUDA does after an illegal access."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; the host does not wait for the copy of a small CPU tensor to CUDA."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    with torch.cuda.device(device):  # memory is pinned for the current device
        return tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def timed_kernels(active: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms once per size of a convolution and use the fastest, if `active`."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or active
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
