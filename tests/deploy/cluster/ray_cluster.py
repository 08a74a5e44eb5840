"""Two machines of a Ray cluster on this one."""

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .processes import PATIENCE

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is absent: bash scripts/test_cluster.sh"
)
MEMORY = 80 * 2**20  # bytes of each machine's object store: Ray's minimum; no images go through it

# a machine that is slow to answer is not dead; one whose processes are gone is noticed immediately
RAYS_PATIENCE = {
    "RAY_health_check_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "900",
    "RAY_raylet_start_wait_time_s": "900",
    "RAY_gcs_server_request_timeout_seconds": "900",
    "RAY_gcs_rpc_server_connect_timeout_s": "300",
    "RAY_py_gcs_connect_timeout_s": "300",
}


def two_machines() -> Iterator[Any]:
    """Machines of one core each; the first has the state of the cluster, the second may die."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAYS_PATIENCE.items():
            patch.setenv(name, value)
        patch.setattr("medunet.deploy.cluster.pool.START_SECONDS", PATIENCE)
        small = {"num_cpus": 1, "object_store_memory": MEMORY, "wait": False}
        made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        try:
            made.wait_for_nodes(timeout=PATIENCE)  # programs connect to the first machine
            made.add_node(**small)
            made.wait_for_nodes(timeout=PATIENCE)
            patch.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@contextmanager
def when(condition: Callable[[], bool], action: Callable[[], object]) -> Iterator[None]:
    """Do something in parallel to the block as soon as a condition is true; fail if the block ends before."""
    over, done = threading.Event(), threading.Event()

    def wait() -> None:
        while not condition():
            if over.wait(0.05):
                return
        action()
        done.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert done.is_set(), "what was waited for did not come, or failed"
