"""Several processes that train one network: joining, sharing results, continuing after one was killed."""

import logging
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # of torchrun: how often this host has restarted its processes
_restarted = False


def join_processes(device: torch.device) -> None:
    """Join the other processes of `torchrun`, with NCCL for GPUs and gloo for CPUs; a second call does nothing."""
    global _restarted  # noqa: PLW0603 - the process group belongs to the process, too
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group(backend="nccl" if device.type == "cuda" else "gloo", **_fresh_store())
        if distributed.get_rank() == 0 and device.type != "cuda":
            logger.info("batch norm over all processes: medunet's, because torch.nn.SyncBatchNorm needs GPUs")
    # a host counts only the restarts that its own processes caused
    count = torch.tensor(int(os.environ.get(RESTARTS, "0")), device=_device())
    distributed.all_reduce(count, op=distributed.ReduceOp.MAX)
    _restarted = int(count) > 0


def _fresh_store() -> dict[str, Any]:
    """Return a rendezvous store per restart, without the addresses that killed processes have left behind."""
    # torchrun gives all attempts one store, and new processes would wait for the dead ones (pytorch issue 135712);
    # several hosts count attempts separately and need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, as `train --nnodes` sets
    value = os.environ.get
    if value("TORCHELASTIC_USE_AGENT_STORE") != "True" or value("GROUP_WORLD_SIZE") != "1":
        return {}
    store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    own = distributed.PrefixStore(f"medunet/{value(RESTARTS, '0')}", store)
    return {"store": own, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


def leave_processes() -> None:
    """Leave the process group if this process has joined one."""
    if is_distributed():
        distributed.destroy_process_group()


def is_distributed() -> bool:
    """Return whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized()


def was_restarted() -> bool:
    """Return whether `torchrun` has restarted the processes: the same in all of them."""
    return _restarted


def from_first(make: Callable[[], T], *, patience: timedelta | None = None) -> T:
    """Call a function in the first process and return its result in all processes.

    Args:
        make: the function; its result is pickled, with tensors on the CPU.
        patience: timeout of the others; None uses that of a training step (ten minutes with NCCL).
    """
    if not is_distributed():
        return make()
    # in a separate group, because the timeout of the training group must stay short to detect hanging processes
    group = None if patience is None else distributed.new_group(backend="gloo", timeout=patience)
    parcel = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(parcel, src=0, group=group)
    return parcel[0]  # type: ignore[return-value] # the result of the first process is a T


def mean_of_processes(values: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each number over all processes, which must have the same names."""
    if not is_distributed():
        return dict(values)
    names = sorted(values)
    means = torch.tensor([values[name] for name in names], dtype=torch.float64, device=_device())
    distributed.all_reduce(means)
    return dict(zip(names, (means / distributed.get_world_size()).tolist(), strict=True))


def _device() -> torch.device:
    """Return the device of the tensors that the backend communicates."""
    nccl = "nccl" in distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
