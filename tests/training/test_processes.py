"""Results that processes share, and how long they wait for the first of them."""

import os
import socket
import subprocess
import sys

import pytest

from medunet.training import processes

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
assert processes.mean_of_processes({"loss": rank}) == {"loss": 0.5}
processes.leave_processes()
"""
"""One of two processes; the second one's timeout ends while the first still runs."""


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
