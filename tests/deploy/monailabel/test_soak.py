"""Four clients at a real label server for MEDUNET_SOAK_MINUTES: no failed request, memory and handles stay."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from .real import Client, Refused, serving, train_3d

pytestmark = [pytest.mark.slow, pytest.mark.label, pytest.mark.filterwarnings("ignore")]

MINUTES = float(os.environ.get("MEDUNET_SOAK_MINUTES", "0.5"))
CLIENTS = 4
GROWTH = 1.05
WARM_REQUESTS, WARM_SECONDS = 25, 300


def usage(root: psutil.Process) -> tuple[int, int]:
    """Memory and handles of a process and all that it has started."""
    family = [root, *root.children(recursive=True)]
    return sum(p.memory_info().rss for p in family), sum(p.num_fds() for p in family)


def test_the_server_is_the_same_after_many_requests(tmp_path: Path) -> None:
    data, run = train_3d(tmp_path, epochs=2)
    studies = data / "imagesTr"
    known = {process.pid for process in psutil.Process().children(recursive=True)}
    with serving([run], str(studies), tmp_path) as url:
        (server,) = (p for p in psutil.Process().children() if p.pid not in known)
        names = sorted(path for path in studies.iterdir() if path.name.endswith(".nii.gz"))
        stop, failures, done = threading.Event(), list[str](), [0] * CLIENTS

        def ask(number: int) -> None:
            client = Client(url)
            while not stop.is_set():
                try:
                    image = names[done[number] % len(names)]
                    client.ask("POST", f"/infer/{run.name}", file=image, result_extension=".seg.nrrd")
                    done[number] += 1
                except Refused as error:
                    failures.append(str(error))

        clients = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        end = time.monotonic() + WARM_SECONDS + MINUTES * 60
        # warm: every client has been answered, so that network and reading process are loaded
        while min(done) < WARM_REQUESTS and not failures and time.monotonic() < end:
            time.sleep(0.5)
        before = usage(server)
        time.sleep(MINUTES * 60)
        stop.set()
        for client in clients:
            client.join(120)
        after = usage(server)
    figures = {"minutes": MINUTES, "requests": sum(done), "MiB": [before[0] >> 20, after[0] >> 20]}
    print(json.dumps({**figures, "handles": [before[1], after[1]]}))  # noqa: T201 (figures, shown by -s)
    assert not failures
    assert min(done) > 0
    assert after[0] <= before[0] * GROWTH
    assert after[1] <= before[1] + CLIENTS
