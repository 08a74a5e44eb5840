"""A predictor that stays and takes cases one by one, from many threads, as they come."""

from __future__ import annotations

import os
import platform
import queue
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from medunet.errors import ConfigError, MedunetError
from medunet.prediction import NamedSource, Prediction, PredictOptions, Predictor

from .dicomweb import DicomWebStore, RemoteSeries
from .ledger import Outcome

Case = NamedSource | RemoteSeries
"""What a resident takes."""


class Resident:
    """Keeps a :class:`medunet.prediction.Predictor` busy: reading, network and writing of different cases overlap.

    Made for an actor with several threads: each call of :meth:`predict` waits for its own case.

    Args:
        bundle: of the predictor.
        options: of the predictor, with an output folder.

    A bundle that cannot be loaded is no exception but what :meth:`problem` says: an actor that dies while it is made
    would be taken for a broken machine.
    """

    def __init__(self, bundle: Path, options: PredictOptions) -> None:
        self._problem: str | None = None
        self._waiting: queue.SimpleQueue[NamedSource | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Future[Prediction]] = queue.SimpleQueue()
        self._order = threading.Lock()
        self._output = output_of(options)
        try:
            self._predictor = Predictor(bundle, options)
        except MedunetError as error:
            self._problem = str(error)
            return
        threading.Thread(target=self._work, daemon=True).start()

    def problem(self) -> str | None:
        """Why nothing can be predicted; None when all is well."""
        return self._problem

    def predict(self, case: Case) -> Outcome:
        """Predict a case; raises RuntimeError where the predictor itself has broken down."""
        if isinstance(case, NamedSource):
            return self._predict(case)
        try:
            return self._predict_remote(case)
        except (MedunetError, OSError) as error:  # such as no room for the files of the series
            return Outcome(case.name, "failed", error=str(error), node=platform.node())

    def _predict_remote(self, case: RemoteSeries) -> Outcome:
        """A series is fetched in the caller's thread, while others are predicted, and not kept."""
        store = DicomWebStore(case.store)
        with tempfile.TemporaryDirectory(prefix="medunet-series-") as folder:
            images = store.fetch(case, Path(folder) / "series")
            outcome = self._predict(NamedSource((images,), case.name))
        if case.send_back and outcome.path is not None:
            store.store(self._output / outcome.path)
            return replace(outcome, sent=True)
        return outcome

    def _predict(self, case: NamedSource) -> Outcome:
        result: Future[Prediction] = Future()
        with self._order:
            self._results.put(result)
            self._waiting.put(case)
        return as_outcome(result.result(), self._output)

    def crash(self) -> None:
        """End the process at once, as a machine that is switched off does: for tests."""
        os._exit(1)

    def _cases(self) -> Iterator[NamedSource]:
        while (case := self._waiting.get()) is not None:
            yield case

    def _work(self) -> None:
        try:
            for prediction in self._predictor.predict(self._cases()):
                self._results.get().set_result(prediction)
        except BaseException as error:
            self._problem = f"{type(error).__name__}: {error}"
            while True:  # whoever waits, and whoever comes
                self._results.get().set_exception(RuntimeError(self._problem))


def output_of(options: PredictOptions) -> Path:
    """Return the folder of the results.

    Raises:
        ConfigError: the options have none.
    """
    if options.output_dir is None:
        raise ConfigError("output_dir is missing", expected="a folder for the label maps")
    return Path(options.output_dir)


def as_outcome(prediction: Prediction, output: Path) -> Outcome:
    """The line of the ledger."""
    source = prediction.source
    if not isinstance(source, NamedSource):
        raise TypeError(f"a case without a name: {source}")
    path = None if prediction.path is None else Path(os.path.relpath(prediction.path, output)).as_posix()
    return Outcome(
        name=source.name,
        status="failed" if prediction.path is None else "there already" if prediction.skipped else "written",
        path=path,
        error=None if prediction.error is None else str(prediction.error),
        seconds=round(prediction.seconds, 3),
        node=platform.node(),
    )
