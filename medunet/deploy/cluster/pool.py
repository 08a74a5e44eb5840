"""Predictors on all machines of a Ray cluster, which get cases as fast as they finish them."""

import logging
import platform
import queue
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medunet.errors import ConfigError, MedunetError
from medunet.io.extras import import_extra
from medunet.prediction import CaseFile, NamedSource, Prediction, PredictOptions, Predictor

from .dicomweb import DicomWebStore, RemoteSeries
from .ledger import Outcome

logger = logging.getLogger(__name__)

Case = NamedSource | RemoteSeries

IN_FLIGHT = 4  # cases that a predictor has at a time: one per stage (read, compute, write) and one that waits
MAX_ATTEMPTS = 3  # processes that may die over one case, or hang
CASE_SECONDS = 3600.0  # timeout per case
LOOK_SECONDS = 5.0  # time between two looks for machines that have come or gone
START_SECONDS = 600.0  # if no predictor is ready for so long, the cluster cannot be used

# for glibc: the heap of an actor's thread would return the memory of large tensors to the system; on two cores a case
# of 96^3 took a ninth longer
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


def join_cluster() -> Any:
    """Return `ray`, connected to the cluster of RAY_ADDRESS or of this machine, or else to a new one here."""
    ray = import_extra("ray", extra="ray", purpose="--on ray")
    if not ray.is_initialized():
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's handler would exit with code 15 and no line
    return ray


class PredictorActor:
    """A predictor for several threads: each waits for its own case; reading, network and writing of cases overlap."""

    def __init__(self, bundle: Path, options: PredictOptions) -> None:
        self._bundle, self._options = bundle, options
        self._output = Path(options.output_dir or "")
        self._cases: queue.SimpleQueue[NamedSource | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Future[Prediction]] = queue.SimpleQueue()
        self._order = threading.Lock()

    def start(self) -> str | None:
        """Load the bundle, or return why it cannot be loaded: an actor that raises looks like a broken machine."""
        try:
            predictor = Predictor(self._bundle, self._options)
        except MedunetError as error:
            return str(error)
        threading.Thread(target=self._work, args=(predictor,), daemon=True).start()
        return None

    def close(self) -> None:
        """End the predictor's threads, for which the process would wait."""
        self._cases.put(None)

    def predict(self, case: Case) -> Outcome:
        """Predict a case; raise a RuntimeError if the predictor itself fails."""
        if isinstance(case, NamedSource):
            return self._predict(case)
        try:
            return self._predict_remote(case)
        except (MedunetError, OSError) as error:  # the series cannot be fetched or stored
            inputs = [asdict(CaseFile(case.url))]
            return Outcome(case.name, "failed", error=str(error), node=platform.node(), inputs=inputs)

    def _predict_remote(self, case: RemoteSeries) -> Outcome:
        """Fetch a series in the caller's thread, while others are predicted, and delete it afterwards."""
        store = DicomWebStore(case.store)
        with tempfile.TemporaryDirectory(prefix="medunet-series-") as folder:
            images = store.fetch(case, Path(folder) / "series")
            outcome = self._predict(NamedSource((images,), case.name))
            outcome = replace(outcome, inputs=[{**file, "path": case.url} for file in outcome.inputs])
        if case.send_back and outcome.path is not None:
            store.store(self._output / outcome.path)
            return replace(outcome, sent=True)
        return outcome

    def _predict(self, case: NamedSource) -> Outcome:
        result: Future[Prediction] = Future()
        with self._order:
            self._results.put(result)
            self._cases.put(case)
        return Outcome.of(result.result(), self._output)

    def _work(self, predictor: Predictor) -> None:
        try:
            for prediction in predictor.predict(iter(self._cases.get, None)):
                self._results.get().set_result(prediction)
        except BaseException as error:
            while True:  # every case that waits or comes
                self._results.get().set_exception(RuntimeError(f"{type(error).__name__}: {error}"))


@dataclass
class _Worker:
    """An actor, and the cases assigned to it, oldest first."""

    node: str
    actor: Any
    started: Any
    is_ready: bool = False
    cases: dict[Any, Case] = field(default_factory=dict)
    since: float = 0.0  # when it can have begun the first of these cases

    def take(self, ref: Any) -> Case:
        # The next case begins when the one before it has come back. A case that overtakes it does not stop the clock:
        # cases that follow would hide one that hangs.
        if ref == next(iter(self.cases)):
            self.since = time.monotonic()
        return self.cases.pop(ref)


class RayPool:
    """One predictor per GPU of the cluster; without GPUs, one per machine, with all its cores.

    Ray's own retries would repeat all cases of a process that dies, so one bad case could make good ones fail. Here
    cases whose process died or hung are retried alone, after all others; a third failure is final. A process that needs
    longer than `case_seconds` for a case is killed. Machines that join later get predictors, too.
    """

    def __init__(self, bundle: Path, options: PredictOptions, *, ray: Any, case_seconds: float = CASE_SECONDS) -> None:
        self.ray, self.bundle, self.options, self.case_seconds = ray, bundle, options, case_seconds
        self.workers: list[_Worker] = []
        self._looked = -LOOK_SECONDS
        self._last_ready = time.monotonic()

    def predict(self, cases: Iterable[Case]) -> Generator[Outcome, None, None]:
        """Yield outcomes as cases are done; raise a ConfigError if no machine can run a predictor."""
        waiting = list(cases)
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                lost: list[Case] = []
                for case, result in self._attempt(waiting, in_flight=IN_FLIGHT if attempt == 1 else 1):
                    if isinstance(result, Outcome):
                        yield replace(result, attempts=attempt)
                    elif attempt < MAX_ATTEMPTS:
                        lost.append(case)
                    else:
                        text = f"{attempt} processes have died over this case; memory may have run out (last: {result})"
                        yield Outcome(case.name, "failed", error=text, attempts=attempt)
                waiting = lost
        finally:
            for worker in self.workers:
                self.ray.kill(worker.actor)
            self.workers = []

    def _attempt(self, cases: Iterable[Case], *, in_flight: int) -> Iterator[tuple[Case, Outcome | str]]:
        """Yield each case with its outcome, or with the reason why its process was lost."""
        waiting = deque(cases)
        while waiting or any(worker.cases for worker in self.workers):
            self._start_missing()
            for worker in self.workers:
                while worker.is_ready and waiting and len(worker.cases) < in_flight:
                    worker.since = worker.since if worker.cases else time.monotonic()
                    ref = worker.actor.predict.remote(waiting[0])
                    worker.cases[ref] = waiting.popleft()
            refs = {ref: w for w in self.workers for ref in (w.cases if w.is_ready else [w.started])}
            if not refs:
                time.sleep(0.1)
                continue
            done, _ = self.ray.wait([*refs], num_returns=1, timeout=min(LOOK_SECONDS, self.case_seconds))
            for ref in done:
                yield from self._take(refs[ref], ref)
            latest = time.monotonic() - self.case_seconds
            for worker in [worker for worker in self.workers if worker.cases and worker.since < latest]:
                yield from self._lose(worker, f"no result in {self.case_seconds:g} seconds")

    def _take(self, worker: _Worker, ref: Any) -> Iterator[tuple[Case, Outcome | str]]:
        try:
            result = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:  # the process has died, or its predictor has failed
            yield from self._lose(worker, type(error).__name__)
            return
        if worker.is_ready:
            yield worker.take(ref), result
        elif result is not None:
            raise ConfigError(f"a machine of the cluster cannot predict: {result}", received=worker.node)
        worker.is_ready = True

    def _lose(self, worker: _Worker, reason: str) -> Iterator[tuple[Case, Outcome | str]]:
        self.workers.remove(worker)
        self.ray.kill(worker.actor)
        self._looked = -LOOK_SECONDS
        if worker.is_ready:
            logger.warning("a predictor was lost (%s); its cases are retried by another one", reason)
        for case in worker.cases.values():
            yield case, reason

    def _start_missing(self) -> None:
        """Start predictors on machines that have none."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        nodes = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        has_gpus = any(resources.get("GPU", 0) >= 1 for resources in nodes.values())
        for node, resources in nodes.items():
            gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            # Ray gives a process as many threads as it asks for cores, one if it asks for none
            share = {"num_gpus": 1, "num_cpus": cores // max(gpus, 1)} if has_gpus else {"num_cpus": cores}
            wanted = gpus if has_gpus else int(cores >= 1)
            for _ in range(wanted - sum(worker.node == node for worker in self.workers)):
                actor = self._start(node, share)
                self.workers.append(_Worker(node, actor, actor.start.remote()))
        if any(worker.is_ready for worker in self.workers):
            self._last_ready = now
        elif now - self._last_ready > START_SECONDS:
            raise ConfigError("no machine of the Ray cluster can run a predictor", received=nodes or "no machine")

    def _start(self, node: str, share: Mapping[str, float]) -> Any:
        strategies = import_extra("ray.util.scheduling_strategies", extra="ray", purpose="--on ray")
        logger.debug("a predictor on %s", node)
        options = self.ray.remote(PredictorActor).options(
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            max_concurrency=IN_FLIGHT + 1,
            runtime_env={"env_vars": ONE_HEAP},
            **share,
        )
        return options.remote(self.bundle, self.options)
