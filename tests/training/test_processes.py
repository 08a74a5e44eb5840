"""Processes that wait for the first one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest

from medunet.training import from_first, processes

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
except RuntimeError:  # of the second, for which the first one has no hearer
    pass
assert processes.from_first(lambda: "the training is not touched")
processes.leave_processes()
"""
"""One of two processes; the second loses its patience while the first is at work."""


@pytest.mark.skipif(sys.platform != "linux", reason="the interface has another name")
def test_processes_wait_for_the_first_as_long_as_they_are_told() -> None:
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


def test_one_process_alone_waits_for_nobody() -> None:
    assert from_first(lambda: 3, patience=timedelta(0)) == 3
