"""Delivery in the background: a training never waits for a tracking server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mlflow.exceptions import MlflowException

from medunet.errors import MedunetError
from medunet.files import lock

from .server import Server
from .spool import Spool
from .state import RunState

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between attempts while the server does not answer: twice as long each time."""

AT_THE_END = 0.2
"""The same when the training is over and the server answers."""

TRIES = 5
"""Times that a record may fail while the server answers, before it is put aside."""

FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED")
"""Answers of a server that another attempt would not change."""

Outcome = Literal["empty", "down", "locked", "failed", "busy"]
"""``locked``: the server answers, but does not take the login any more."""

UNREACHABLE = {"down": "does not answer", "locked": "does not take the login any more"}
"""What that means for all records, in words."""


class Delivery:
    """Brings the records of a spool to a server, in order.

    Args:
        spool: the records.
        server: where they go.
        state: file of the :class:`RunState` that names the run of records that name none.
    """

    def __init__(self, spool: Spool, server: Server, state: Path) -> None:
        self.spool = spool
        self.server = server
        self.state = state
        self.delivered = 0
        self.refused = 0
        self._failures: dict[str, int] = {}

    def run(self, stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Deliver until nothing is left, the server is down, or `stop` says so."""
        if not len(self.spool):
            return "empty"
        with lock(self.spool.folder / ".lock", wait=False) as held:
            if not held:
                return "busy"
            for name in self.spool.names():
                if stop():
                    break
                if not self.server.is_up():
                    return "down"
                outcome = self._deliver(name)
                if outcome is not None:
                    return outcome
        return "failed" if len(self.spool) else "empty"

    def _deliver(self, name: str) -> Outcome | None:
        """Send a record, or put it aside; else what stands in the way of all."""
        try:
            record = self.spool.read(name)
            self._send(name, record)
        except Exception as error:  # MLflow raises many types, its server's among them
            if not isinstance(error, MedunetError) and not self.server.lets_in():
                return "locked"
            self._failures[name] = self._failures.get(name, 0) + 1
            is_final = isinstance(error, MedunetError) or getattr(error, "error_code", "") in FINAL
            if not is_final and self._failures[name] < TRIES:
                logger.debug("MLflow did not take a record: %s", error)
                return "failed"
            place = self.spool.refuse(name)
            self.refused += 1
            text = error.message if isinstance(error, MlflowException) else str(error)
            logger.warning("MLflow does not take a record (%s): %s", place, " ".join(str(text).split())[:300])
            return None
        self.spool.remove(name)
        self.delivered += 1
        return None

    def _send(self, name: str, record: dict[str, Any]) -> None:
        run_id = record.get("run_id", "")
        if record["kind"] == "create":
            state = RunState.load(self.state)
            if state is None or state.key != record["key"] or state.run_id:
                return  # made already, or of a training that another has taken the place of
            state.run_id = self.server.create_run(
                key=record["key"], name=record["name"], tags=record["tags"], start_time=record["time"]
            )
            state.save(self.state)
            return
        if not run_id:
            state = RunState.load(self.state)
            if state is None or state.key != record["key"] or not state.run_id:
                raise MedunetError("the run of a record for MLflow is not known", file=self.state)
            run_id = state.run_id
        self.server.send(record, run_id=run_id, payload=self.spool.payload(name))


class Sender:
    """A thread that delivers as soon as there is something, and tries again while the server is down.

    Args:
        delivery: what it does.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._said: Outcome = "empty"

    def start(self) -> None:
        """Begin."""
        self._deadline = None
        self._closing.clear()
        self._thread = threading.Thread(target=self._run, name="medunet-tracking", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something."""
        self._wake.set()

    def close(self, patience: float) -> int:
        """Deliver the rest and end.

        Args:
            patience: seconds it may take; a server that is down is not waited for.

        Returns:
            Number of records that are left.
        """
        self._deadline = time.monotonic() + patience
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(patience + 1)
            self._thread = None
        return len(self.delivery.spool)

    def _run(self) -> None:
        wait = FIRST_WAIT
        while True:
            self._wake.clear()
            try:
                outcome = self.delivery.run(stop=self._is_late)
            except Exception as error:  # such as a folder that is gone: a training goes on without
                logger.warning("records for MLflow cannot be sent: %s", error)
                outcome = "failed"
            self._say(outcome)
            if self._closing.is_set():
                if outcome in ("empty", *UNREACHABLE) or self._is_late():
                    return
                time.sleep(AT_THE_END)
            elif outcome == "empty":
                wait = FIRST_WAIT
                self._wake.wait()
            else:
                self._closing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _say(self, outcome: Outcome) -> None:
        """Once what stands in the way, and once that it does no more."""
        if outcome == self._said or outcome not in ("empty", *UNREACHABLE):
            return
        self._said = outcome
        if outcome == "empty":
            logger.info("MLflow answers again: all that was kept has been sent")
            return
        logger.warning(
            "MLflow at %s %s: training goes on, what it would log is kept and sent later",
            *(self.delivery.server.name, UNREACHABLE[outcome]),
        )
