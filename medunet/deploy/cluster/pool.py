"""Residents on all machines of a Ray cluster, with cases handed out as fast as they are done."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medunet.errors import ConfigError
from medunet.io.extras import import_extra
from medunet.prediction import PredictOptions

from .ledger import Outcome
from .resident import Case, Resident

logger = logging.getLogger(__name__)

IN_FLIGHT = 4
"""Cases that a resident has at once: one a stage (read, compute, write) and one that waits."""

MAX_ATTEMPTS = 3
"""Processes that may die over one case, or hang."""

CASE_SECONDS = 3600.0
"""For how long a resident may be at a case: one that takes longer hangs. The time counts from when those that the
resident got before have come back, or from when it got the case where there were none."""

LOOK_SECONDS = 5.0
"""Time between two looks for machines that have come or gone."""

START_SECONDS = 600.0
"""Without any resident for so long there is something wrong with the cluster."""


ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""For glibc, before the process starts. A resident computes in a thread, and a thread's own heap gives large tensors
back whatever :func:`medunet.runtime.keep_freed_memory` asks for: on two cores a case of 96^3 took a ninth longer."""


def import_ray() -> Any:
    """The package `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    return import_extra("ray", extra="ray", purpose="--on ray")


def join_cluster() -> Any:
    """Ray, connected: to the cluster of RAY_ADDRESS or of this machine, else to one of this machine alone."""
    ray = import_ray()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray


@dataclass
class _Seat:
    """A resident, and what it has been given: in that order, and since when the first of it is what it should be at."""

    node: str
    actor: Any
    greeting: Any
    is_ready: bool = False
    refs: list[Any] = field(default_factory=list)
    alone: bool = False
    since: float = 0.0

    def add(self, ref: Any) -> None:
        """Note a case that it was given."""
        if not self.refs:
            self.since = time.monotonic()
        self.refs.append(ref)

    def remove(self, ref: Any) -> None:
        """Note a case that came back."""
        # Residents take up to `IN_FLIGHT` cases at once and in their order, so only the first one's clock runs:
        #
        #   given a b c d   | a           | b       | c  ...
        #                   a back        b back
        #
        # one that overtakes it does not stop the clock, else those that follow would hide a case that hangs
        if ref == self.refs[0]:
            self.since = time.monotonic()
        self.refs.remove(ref)


class RayPool:
    """One resident a GPU of the cluster; where there are no GPUs, one a machine with all its cores.

    A case whose process or machine dies or hangs is given to another resident; from then on alone, so that a case that
    kills processes takes no others with it, and the third time it has failed. Machines that come later get residents,
    too.

    Args:
        bundle: of the predictor.
        options: of the predictor.
        ray: the connected module.
        case_seconds: a resident that is at a case for longer hangs, and is ended; see :data:`CASE_SECONDS`.
    """

    def __init__(self, bundle: Path, options: PredictOptions, *, ray: Any, case_seconds: float = CASE_SECONDS) -> None:
        self.ray = ray
        self.case_seconds = case_seconds
        self.bundle = bundle
        self.options = options
        self.seats: list[_Seat] = []
        self._waiting: deque[tuple[Case, int]] = deque()
        self._suspects: deque[tuple[Case, int]] = deque()
        self._given: dict[Any, tuple[_Seat, Case, int]] = {}
        self._looked = -LOOK_SECONDS
        self._last_seat = time.monotonic()

    def predict(self, cases: Iterable[Case]) -> Generator[Outcome, None, None]:
        """Predict; outcomes come as they are done. At most `IN_FLIGHT` cases a resident have been begun at any time.

        Raises:
            ConfigError: the bundle cannot be loaded there, or no machine takes a resident.
        """
        self._waiting.extend((case, 0) for case in cases)
        try:
            while self._waiting or self._suspects or self._given:
                self._seat_residents()
                self._hand_out()
                yield from self._collect()
                yield from self._end_those_that_hang()
        finally:
            for seat in self.seats:
                self.ray.kill(seat.actor)
            self.seats = []

    def _seat_residents(self) -> None:
        """Residents for machines that have none, or lost theirs."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        nodes = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        has_gpus = any(resources.get("GPU", 0) >= 1 for resources in nodes.values())
        for node, resources in nodes.items():
            gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            wanted = gpus if has_gpus else int(cores >= 1)
            # Ray gives a process as many threads as it asks for cores, one where it asks for none
            share = {"num_gpus": 1, "num_cpus": cores // max(gpus, 1)} if has_gpus else {"num_cpus": cores}
            for _ in range(wanted - sum(seat.node == node for seat in self.seats)):
                self.seats.append(self._seat(node, share))
        if any(seat.is_ready for seat in self.seats):
            self._last_seat = time.monotonic()
        elif time.monotonic() - self._last_seat > START_SECONDS:
            raise ConfigError("no machine of the Ray cluster takes a predictor", received=nodes or "no machine")

    def _seat(self, node: str, share: Mapping[str, float]) -> _Seat:
        strategies = import_extra("ray.util.scheduling_strategies", extra="ray", purpose="--on ray")
        strategy = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        kind = self.ray.remote(Resident).options(
            scheduling_strategy=strategy,
            max_concurrency=IN_FLIGHT + 1,
            max_restarts=0,
            runtime_env={"env_vars": ONE_HEAP},
            **share,
        )
        actor = kind.remote(self.bundle, self.options)
        seat = _Seat(node, actor, actor.problem.remote())
        logger.debug("a predictor on %s", node)
        return seat

    def _hand_out(self) -> None:
        for seat in self.seats:
            if not seat.is_ready or seat.alone:
                continue
            if self._suspects and not seat.refs:
                seat.alone = True
                self._give(seat, *self._suspects.popleft())
                continue
            # one that is to be had by a suspect runs empty first
            while self._waiting and len(seat.refs) < IN_FLIGHT and not (self._suspects and seat is self._free_next()):
                self._give(seat, *self._waiting.popleft())

    def _free_next(self) -> _Seat:
        return min((seat for seat in self.seats if seat.is_ready), key=lambda seat: len(seat.refs))

    def _give(self, seat: _Seat, case: Case, attempts: int) -> None:
        ref = seat.actor.predict.remote(case)
        seat.add(ref)
        self._given[ref] = (seat, case, attempts)

    def _collect(self) -> Iterator[Outcome]:
        greetings = {seat.greeting: seat for seat in self.seats if not seat.is_ready}
        waited = [*self._given, *greetings]
        if not waited:
            time.sleep(0.1)
            return
        done, _ = self.ray.wait(waited, num_returns=1, timeout=min(LOOK_SECONDS, self.case_seconds))
        for ref in done:
            if ref in greetings:
                self._greet(greetings[ref])
            elif ref in self._given:  # else its resident has died meanwhile
                yield from self._take(ref)

    def _greet(self, seat: _Seat) -> None:
        try:
            problem = self.ray.get(seat.greeting)
        except self.ray.exceptions.RayError as error:
            self._lose(seat, error)
            return
        if problem is not None:
            raise ConfigError(f"a machine of the cluster cannot predict: {problem}", received=seat.node)
        seat.is_ready = True

    def _take(self, ref: Any) -> Iterator[Outcome]:
        seat, _, attempts = self._given[ref]
        try:
            outcome: Outcome = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:  # the process has died, or its predictor has broken down
            yield from self._lose(seat, error)
            return
        del self._given[ref]
        seat.remove(ref)
        seat.alone = False
        yield replace(outcome, attempts=attempts + 1)

    def _end_those_that_hang(self) -> Iterator[Outcome]:
        latest = time.monotonic() - self.case_seconds
        for seat in [seat for seat in self.seats if seat.refs and seat.since < latest]:
            yield from self._lose(seat, TimeoutError(f"no result in {self.case_seconds:g} seconds"))

    def _lose(self, seat: _Seat, error: Exception) -> list[Outcome]:
        """A resident is gone: its cases go to others, or have failed."""
        reason = str(error) if isinstance(error, TimeoutError) else type(error).__name__
        if seat in self.seats:
            self.seats.remove(seat)
        if seat.is_ready:
            logger.warning("a predictor was lost (%s); its cases go to another", reason)
        self._looked = -LOOK_SECONDS
        self.ray.kill(seat.actor)
        failed = []
        for ref in seat.refs:
            _, case, attempts = self._given.pop(ref)
            if attempts + 1 < MAX_ATTEMPTS:
                self._suspects.append((case, attempts + 1))
                continue
            text = f"{attempts + 1} processes have died over this case (the last: {reason}); memory may have run out"
            failed.append(Outcome(case.name, "failed", error=text, attempts=attempts + 1, node=seat.node))
        seat.refs.clear()
        return failed
