"""The overlap of reading, computing and writing: order, bounds, ends."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medunet.prediction.pipeline import overlap

PATIENCE_S = 10.0
"""A hang fails the test instead of stopping the suite."""


def threads() -> int:
    return threading.active_count()


@given(count=st.integers(0, 9), in_flight=st.integers(1, 4))
def test_every_source_gives_its_result_in_order(count: int, in_flight: int) -> None:
    results = overlap(
        range(count), read=lambda n: [n], compute=lambda w: [*w, "c"], write=lambda w: (*w, "w"), in_flight=in_flight
    )
    assert list(results) == [(n, "c", "w") for n in range(count)]


def test_the_three_stages_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3)  # broken unless three cases are in the three stages at once

    def stage(work: int, meets: int) -> int:
        if work == meets:
            meeting.wait(PATIENCE_S)
        return work

    results = overlap(
        range(3),
        read=lambda n: stage(n, 2),
        compute=lambda n: stage(n, 1),
        write=lambda n: stage(n, 0),
        in_flight=3,
    )
    assert list(results) == [0, 1, 2]


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

    assert len(list(overlap(range(12), read=read, compute=lambda n: n, write=write, in_flight=in_flight))) == 12
    assert most == in_flight


def test_a_result_is_reported_while_the_next_case_is_still_read() -> None:
    reported = threading.Event()

    def read(n: int) -> int:
        if n == 1:
            assert reported.wait(PATIENCE_S)
        return n

    results = overlap(range(2), read=read, compute=lambda n: n, write=lambda n: n, in_flight=3)
    assert next(results) == 0
    reported.set()
    assert list(results) == [1]


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_a_stage_raises_arrives_and_no_thread_stays(stage: str, error: type[BaseException]) -> None:
    def fail(n: int) -> int:
        if n == 2:
            raise error(stage)
        return n

    stages = {name: (fail if name == stage else lambda n: n) for name in ("read", "compute", "write")}
    before = threads()
    with pytest.raises(error, match=stage):
        list(overlap(range(50), **stages, in_flight=3))
    assert threads() == before


def test_sources_that_cannot_be_listed_raise_in_the_caller() -> None:
    def sources():
        yield 0
        raise OSError("folder is gone")

    results = overlap(sources(), read=lambda n: n, compute=lambda n: n, write=lambda n: n, in_flight=2)
    with pytest.raises(OSError, match="folder is gone"):
        list(results)


def test_ctrl_c_finishes_what_is_being_written_and_begins_nothing() -> None:
    begun, finished, read_cases = [], [], []
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
        begun.append(n)
        if n == 1:
            writing.set()
            time.sleep(0.05)
        finished.append(n)
        return n

    before = threads()
    with pytest.raises(KeyboardInterrupt):
        list(overlap(range(1000), read=read, compute=compute, write=write, in_flight=3))
    assert threads() == before
    assert begun == finished == [0, 1]
    assert len(read_cases) < 10


def test_a_caller_that_stops_early_leaves_no_thread() -> None:
    before = threads()
    results = overlap(range(1000), read=lambda n: n, compute=lambda n: n, write=lambda n: n, in_flight=3)
    assert next(results) == 0
    results.close()
    assert threads() == before
