"""Results that processes share, and how long they wait for the first of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import distributed

from medunet.training import from_first, join_processes, leave_processes, processes, was_restarted
from medunet.training.processes import RESTARTS, is_distributed, mean_of_processes

WAITS = """
import importlib.util, os, sys, time
from datetime import timedelta
from torch import distributed

spec = importlib.util.spec_from_file_location("processes", sys.argv[1])
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
rank = int(os.environ["RANK"])
distributed.init_process_group("gloo")
assert processes.from_first(lambda: rank, patience=timedelta(hours=24)) == 0
try:
    processes.from_first(lambda: time.sleep(5), patience=timedelta(seconds=2))
    assert rank == 0
except RuntimeError:  # of the second process, or of the first without a receiver
    pass
assert processes.from_first(lambda: "the training group still works")
processes.leave_processes()
"""
"""One of two processes; the second one's timeout ends while the first is at work."""

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.skipif(sys.platform != "linux", reason="the interface has another name")
def test_processes_wait_for_the_first_until_the_timeout() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    # the file alone: the whole package takes longer to import than the test
    command = [sys.executable, "-W", "ignore", "-c", WAITS, str(processes.__file__)]
    running = [subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank)}) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])])
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Joined as under torchrun, with gloo or NCCL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    facts = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(RESTARTS, raising=False)
    join_processes(torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu"))
    yield request.param
    leave_processes()


@pytest.mark.filterwarnings("ignore")
def test_a_group_of_one_process_gets_its_own_results(group: str) -> None:
    assert distributed.get_backend() == ("nccl" if group == "cuda" else "gloo")
    assert not was_restarted()
    state = {"weight": torch.arange(3.0), "epoch": 7}
    received = from_first(lambda: state)
    assert received["epoch"] == 7
    assert torch.equal(received["weight"], state["weight"])
    assert mean_of_processes({"loss": 0.25, "dice": 1 / 3}) == {"dice": 1 / 3, "loss": 0.25}
    leave_processes()
    assert not is_distributed()
