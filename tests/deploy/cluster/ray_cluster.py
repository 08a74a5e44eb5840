"""Two machines of a Ray cluster on this one."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is absent: bash scripts/test_cluster.sh"
)

MEMORY = 80 * 2**20
"""Bytes of the object store of each machine: the smallest that Ray takes; only names go through it, no images."""


def two_machines() -> Iterator[Any]:
    """A core each; the first holds the cluster's state, the second may die."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        small = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=small)
        made.add_node(num_cpus=1, object_store_memory=MEMORY)
        made.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


def when(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Do something as soon as something is so."""

    def wait() -> None:
        end = time.monotonic() + 240
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
