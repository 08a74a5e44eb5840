"""Two processes of a process group as forks of the test: a new process needs seconds to import PyTorch."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable

import torch


def run_two_processes(work: Callable[[int], object]) -> None:
    """Run `work(rank)` in two processes with the environment that `torchrun` sets; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"

    def start(rank: int) -> None:
        os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        work(rank)

    running = [multiprocessing.get_context("fork").Process(target=start, args=(rank,)) for rank in (0, 1)]
    for process in running:
        process.start()
    try:
        for process in running:
            process.join(300)
        assert [process.exitcode for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
