"""A predictor that takes cases one by one, from many threads."""

from __future__ import annotations

import platform
import queue
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from medunet.errors import MedunetError
from medunet.prediction import NamedSource, Prediction, PredictOptions, Predictor

from .dicomweb import DicomWebStore, RemoteSeries
from .ledger import Outcome

Case = NamedSource | RemoteSeries


class PredictorActor:
    """A busy :class:`medunet.prediction.Predictor`: reading, network and writing of different cases overlap.

    It is for an actor with several threads: each call of :meth:`predict` waits for its own case.
    """

    def __init__(self, bundle: Path, options: PredictOptions) -> None:
        self._bundle, self._options = bundle, options
        self._output = Path(options.output_dir or "")
        self._cases: queue.SimpleQueue[NamedSource] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Future[Prediction]] = queue.SimpleQueue()
        self._order = threading.Lock()

    def start(self) -> str | None:
        """Load the bundle; return why it cannot be loaded: an actor that raises looks like a broken machine."""
        try:
            predictor = Predictor(self._bundle, self._options)
        except MedunetError as error:
            return str(error)
        threading.Thread(target=self._work, args=(predictor,), daemon=True).start()
        return None

    def predict(self, case: Case) -> Outcome:
        """Predict a case; raise a RuntimeError if the predictor itself fails."""
        if isinstance(case, NamedSource):
            return self._predict(case)
        try:
            return self._predict_remote(case)
        except (MedunetError, OSError) as error:  # the series cannot be fetched or stored
            return Outcome(case.name, "failed", error=str(error), node=platform.node())

    def _predict_remote(self, case: RemoteSeries) -> Outcome:
        """Fetch a series in the caller's thread, while others are predicted, and delete it afterwards."""
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
            self._cases.put(case)
        return Outcome.of(result.result(), self._output)

    def _work(self, predictor: Predictor) -> None:
        try:
            for prediction in predictor.predict(iter(self._cases.get, None)):
                self._results.get().set_result(prediction)
        except BaseException as error:
            while True:  # every case that waits or comes
                self._results.get().set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
