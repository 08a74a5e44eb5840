"""Four clients at a real label server for MEDUNET_SOAK_MINUTES: no failed request, memory and handles stay."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from .real import Client, Rejected, serving, train_3d

pytestmark = [pytest.mark.slow, pytest.mark.label, pytest.mark.filterwarnings("ignore")]

MINUTES = float(os.environ.get("MEDUNET_SOAK_MINUTES", "0.5"))
CLIENTS = 4
GROWTH = 1.05
WARM_REQUESTS, WARM_SECONDS = 25, 300


def usage(root: psutil.Process) -> tuple[int, int]:
    """Return memory and handles of a process and its children."""
    family = [root, *root.children(recursive=True)]
    return sum(p.memory_info().rss for p in family), sum(p.num_fds() for p in family)


def test_memory_and_handles_stay_during_many_requests(tmp_path: Path) -> None:
    data, run = train_3d(tmp_path, epochs=2)
    images = sorted(data.glob("imagesTr/*.nii.gz"))
    known = {process.pid for process in psutil.Process().children(recursive=True)}
    with serving([run], str(data / "imagesTr"), tmp_path) as url:
        (server,) = (p for p in psutil.Process().children() if p.pid not in known)
        stop, failures, done = threading.Event(), list[str](), [0] * CLIENTS

        def ask(number: int) -> None:
            while not stop.is_set():
                try:
                    image = images[done[number] % len(images)]
                    Client(url).ask("POST", f"/infer/{run.name}", file=image, result_extension=".seg.nrrd")
                    done[number] += 1
                except Rejected as error:
                    failures.append(str(error))

        clients = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        end = time.monotonic() + WARM_SECONDS + MINUTES * 60
        # each client has answers: the network and the reading process are loaded
        while min(done) < WARM_REQUESTS and not failures and time.monotonic() < end:
            time.sleep(0.5)
        before = usage(server)
        time.sleep(MINUTES * 60)
        stop.set()
        for client in clients:
            client.join(120)
        after = usage(server)
    print(f"{MINUTES} minutes, {sum(done)} requests, bytes and handles {before} -> {after}")  # noqa: T201
    assert not failures
    assert min(done) > 0
    assert after[0] <= before[0] * GROWTH
    assert after[1] <= before[1] + CLIENTS
