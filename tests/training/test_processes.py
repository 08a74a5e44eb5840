"""Results that processes share, and how long they wait for the first of them."""

import sys
import time
from datetime import timedelta

import pytest
from forks import run_two_processes
from torch import distributed

from medunet.training.processes import from_first, leave_processes, mean_of_processes

pytestmark = pytest.mark.filterwarnings("ignore")


def wait(rank: int) -> None:
    """Be one of two processes; the second one's timeout ends while the first still runs."""
    distributed.init_process_group("gloo")
    assert from_first(lambda: rank, patience=timedelta(hours=24)) == 0
    try:
        from_first(lambda: time.sleep(3), patience=timedelta(seconds=1))
        assert rank == 0
    except RuntimeError:  # of the second process, or of the first without a receiver
        pass
    assert from_first(lambda: "the training group still works")
    assert mean_of_processes({"loss": rank}) == {"loss": 0.5}
    leave_processes()


@pytest.mark.skipif(sys.platform != "linux", reason="the interface has another name")
def test_processes_wait_for_the_first_until_the_timeout() -> None:
    run_two_processes(wait)
