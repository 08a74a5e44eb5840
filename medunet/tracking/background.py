"""Work beside a training run, so that no step waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

logger = logging.getLogger(__name__)


class Background:
    """One thread that does one thing after another; an error is logged as a warning."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "medunet-tracking-work")
        self._stopped = threading.Event()
        self._newest: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Do some work later."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                logger.warning("not logged to MLflow: %s", error, exc_info=True)

        self._newest = self._pool.submit(guarded)

    def is_stopped(self) -> bool:
        """Whether work that takes long must end now."""
        return self._stopped.is_set()

    def finish(self, patience: float) -> None:
        """Wait for the work, and drop what is not done after `patience` seconds."""
        if self._newest is not None:
            wait([self._newest], timeout=patience)
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
