"""The overlap of reading, computing and writing: order, limits, and how it ends."""

import threading
import time
from collections.abc import Iterator

import pytest

from medunet.prediction.pipeline import overlap

PATIENCE_S = 10.0  # a hang fails the test instead of stopping the suite


def same(n: int) -> int:
    return n


def test_the_three_stages_run_at_the_same_time_and_results_keep_their_order() -> None:
    meeting = threading.Barrier(3)  # broken unless three cases are in the three stages at once

    def stage(work: int, meets: int) -> int:
        if work == meets:
            meeting.wait(PATIENCE_S)
        return work

    stages = {"read": lambda n: stage(n, 2), "compute": lambda n: stage(n, 1), "write": lambda n: stage(n, 0)}
    assert list(overlap(range(5), **stages, in_flight=3)) == [0, 1, 2, 3, 4]
    assert list(overlap([], **stages, in_flight=3)) == []


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_no_more_cases_are_in_flight_than_allowed(in_flight: int) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def read(n: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        return n

    def write(n: int) -> int:
        nonlocal now
        time.sleep(0.005)  # slower than reading, so that an unbounded reader would run ahead
        with lock:
            now -= 1
        return n

    assert list(overlap(range(12), read=read, compute=same, write=write, in_flight=in_flight)) == list(range(12))
    assert most == in_flight


def test_a_result_is_reported_while_the_next_case_is_still_read() -> None:
    reported = threading.Event()

    def read(n: int) -> int:
        if n == 1:
            assert reported.wait(PATIENCE_S)
        return n

    results = overlap(range(2), read=read, compute=same, write=same, in_flight=3)
    assert next(results) == 0
    reported.set()
    assert list(results) == [1]


@pytest.mark.parametrize("stage", ["sources", "read", "compute", "write"])
def test_an_error_of_a_stage_is_raised_and_no_thread_remains(stage: str) -> None:
    def fail(n: int) -> int:
        if n == 2:
            raise OSError(stage)
        return n

    def sources() -> Iterator[int]:
        for n in range(50):
            yield fail(n) if stage == "sources" else n

    stages = {name: (fail if name == stage else same) for name in ("read", "compute", "write")}
    before = threading.active_count()
    with pytest.raises(OSError, match=stage):
        list(overlap(sources(), **stages, in_flight=3))
    assert threading.active_count() == before


def test_ctrl_c_finishes_the_current_file_and_starts_nothing() -> None:
    started, finished, read_cases = [], [], []
    writing = threading.Event()

    def read(n: int) -> int:
        read_cases.append(n)
        return n

    def compute(n: int) -> int:
        if n == 2:
            assert writing.wait(PATIENCE_S)
            raise KeyboardInterrupt
        return n

    def write(n: int) -> int:
        started.append(n)
        if n == 1:
            writing.set()
            time.sleep(0.05)
        finished.append(n)
        return n

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(overlap(range(1000), read=read, compute=compute, write=write, in_flight=3))
    assert threading.active_count() == before
    assert started == finished == [0, 1]
    assert len(read_cases) < 10


def test_a_caller_that_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    results = overlap(range(1000), read=same, compute=same, write=same, in_flight=3)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def test_several_threads_read_and_write_and_results_keep_their_order() -> None:
    readers, writers = threading.Barrier(3), threading.Barrier(3)

    def read(n: int) -> int:
        if n < 3:
            readers.wait(PATIENCE_S)
        time.sleep(0.01 * (n % 3 == 0))  # the first of three is the last to be read
        return n

    def write(n: int) -> int:
        if n < 3:
            writers.wait(PATIENCE_S)
        time.sleep(0.01 * (n % 3 == 0))
        return n

    results = overlap(iter(range(12)), read=read, compute=same, write=write, in_flight=7, threads=3)
    assert list(results) == list(range(12))
