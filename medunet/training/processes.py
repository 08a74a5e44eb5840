"""Several processes that train one network: joining, agreeing, and going on after one was killed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Environment variable of torchrun: how often this host has started its processes again."""

_restarted = False


def join_processes(device: torch.device) -> None:
    """Join the other processes of `torchrun`, with NCCL for GPUs and gloo for CPUs; nothing where that was done.

    Args:
        device: of this process.
    """
    global _restarted  # noqa: PLW0603 - the process group is the process's own, too
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group(backend="nccl" if device.type == "cuda" else "gloo", **_fresh_store())
        if distributed.get_rank() == 0 and device.type != "cuda":
            logger.info("batch norm over all processes: medunet's, for torch.nn.SyncBatchNorm needs GPUs")
    # a host counts only the restarts that one of its own processes has caused
    count = torch.tensor(int(os.environ.get(RESTARTS, "0")), device=_place())
    distributed.all_reduce(count, op=distributed.ReduceOp.MAX)
    _restarted = int(count) > 0


def _fresh_store() -> dict[str, Any]:
    """Where processes of one host meet that were started again: not where the killed ones have left their addresses.

    `torchrun` gives all its attempts one store, in which the new processes would find the dead and hang
    (https://github.com/pytorch/pytorch/issues/135712). Of several hosts each counts its own attempts, so they need
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``, as ``medunet train --nnodes`` sets it.
    """
    value = os.environ.get
    if value("TORCHELASTIC_USE_AGENT_STORE") != "True" or value("GROUP_WORLD_SIZE") != "1":
        return {}
    store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    own = distributed.PrefixStore(f"medunet/{value(RESTARTS, '0')}", store)
    return {"store": own, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


def leave_processes() -> None:
    """Leave the others; nothing where nobody has joined."""
    if is_distributed():
        distributed.destroy_process_group()


def is_distributed() -> bool:
    """Whether this process is one of several.

    Example:
        >>> is_distributed()
        False
    """
    return distributed.is_available() and distributed.is_initialized()


def was_restarted() -> bool:
    """Whether `torchrun` has started the processes again, so that they go on where the killed ones were.

    All processes say the same.
    """
    return _restarted


def from_first(make: Callable[[], T], *, patience: timedelta | None = None) -> T:
    """What the first process makes, given to all: they go on from one state, also where a disk shows them another.

    Args:
        make: called by the first process only; its result is pickled, with tensors on the CPU.
        patience: how long the others wait; None as long as for a step of the training, ten minutes with NCCL.

    Example:
        >>> from_first(lambda: 3)
        3
    """
    if not is_distributed():
        return make()
    # a group of its own, so that a process that hangs in the training is found as soon as ever; closed with the others
    group = None if patience is None else distributed.new_group(backend="gloo", timeout=patience)
    parcel = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(parcel, src=0, group=group)
    return parcel[0]  # type: ignore[return-value] # the first process's is a T


def mean_of_processes(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of each number over all processes; they must have the same names.

    Example:
        >>> mean_of_processes({"loss": 0.5})
        {'loss': 0.5}
    """
    if not is_distributed():
        return dict(values)
    names = sorted(values)
    means = torch.tensor([values[name] for name in names], dtype=torch.float64, device=_place())
    distributed.all_reduce(means)
    return dict(zip(names, (means / distributed.get_world_size()).tolist(), strict=True))


def _place() -> torch.device:
    """Where the backend wants its tensors."""
    nccl = "nccl" in distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
