"""A training run in MLflow: a parent run with one child run per fold."""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas
from ignite.engine import Engine, Events
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME

import medunet
from medunet.files import lock, write_atomically
from medunet.reports import render_curves
from medunet.training import HistoryHandler

from .anonymous import CHANGES, CaseCodes, anonymous_config, text_files
from .bundle_model import model_name
from .content import (
    SystemMetrics,
    changed_parameters,
    dataset_record,
    describe,
    environment,
    flat_parameters,
    git_revision,
    packages,
    show,
)
from .pictures import ValidationCases
from .record import CASES_NAME, LATER, PARENT_NAME, RECORD_NAME, SAMPLES_NAME, Delivery, RunRecord
from .server import PATIENT_SECONDS, PROBE_SECONDS, Server, limits, now

logger = logging.getLogger(__name__)

TIME_SHARE = 0.02  # of the training run that sending may take: after a delay of 1 s, 50 s pass without
REMEDY = "start the server, or train with --no-tracking"


@dataclass(kw_only=True, eq=False)
class TrackingHandler:
    """Logs a training run to MLflow; by default to a SQLite file beside the run.

    Losses and validation metrics are those of the :class:`medunet.training.HistoryHandler` of the trainer. If the
    trainer has none, this handler attaches its own, which writes ``folder/history.json``.

    Everything that MLflow gets is first written to the run's folder: ``tracking.json`` (tags, parameters, what was
    sent), ``tracking/`` (files), ``history.json`` and ``system_metrics.jsonl``. A server that is down before the
    training run is an error; later it is one warning. What was not sent is sent when it answers again, when the run is
    resumed, or by ``medunet runs sync``. Cases are numbered and absolute paths removed: no patient is named.
    ``folder/cases.json`` has the names.

    Args:
        tracking_uri: ``sqlite:///...`` or the address of a server; ``None`` or ``""`` disables tracking.
        folder: the output folder of the training run.
        training_dir: folder that the folds of one training run share. Default: each run stands alone.
        bundle_root: the bundle that is trained.
        dataset_dir: folder of the data set; its name is logged.
        experiment_name: MLflow experiment.
        run_name: name of the parent run. Default: the name of `training_dir`.
        fold: number of the fold.
        datasets: training and validation data, with ``data`` as returned by :func:`medunet.datasets.datalist`.
        validator: evaluator whose metrics are logged in the epochs in which it ran.
        class_names: all classes, background first.
        params: values that replace those of the bundle's ``train.json``.
        regions: class indices of each class if classes overlap, as in the validator's postprocessing.
        pictures: draw the worst, median and best validation case of each best epoch, and of the last if it is kept.
        system_metrics: log MLflow's system and GPU metrics.
        model: pack the bundle at the end and make it the run's model, registered under the name of `training_dir`.
        resume: continue the run that the folder belongs to.
        patience: seconds that the end of the training run may wait for the digest of the data set.
        is_writer: False on all but the first process.
    """

    tracking_uri: str | None
    folder: str
    training_dir: str | None = None
    bundle_root: str | None = None
    dataset_dir: str | None = None
    experiment_name: str = "medunet"
    run_name: str | None = None
    fold: int = 0
    datasets: Sequence[Any] = ()
    validator: Any = None
    class_names: Sequence[str] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    regions: Sequence[Sequence[int]] = ()
    pictures: bool = True
    system_metrics: bool = True
    model: bool = True
    resume: bool = False
    patience: float = 60.0
    is_writer: bool = True

    def __post_init__(self) -> None:
        self._bundle = Path(self.bundle_root) if self.bundle_root else None
        self._training = Path(self.training_dir or self.bundle_root or self.folder)
        self._name = self.run_name or self._training.resolve().name
        self._parent_file, self._record_file = self._training / PARENT_NAME, Path(self.folder) / RECORD_NAME
        self._cases: ValidationCases | None = None
        self._deliveries: tuple[Delivery, ...] = ()  # to the run and its parent; empty outside of a training run

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, right after its checkpoint handler: a server that is down is noticed first."""
        if not self.tracking_uri or not self.is_writer:
            return
        names = [str(item.get("name", "")) for dataset in self.datasets for item in getattr(dataset, "data", ())]
        self._codes = CaseCodes(names)
        if self.validator is not None:
            options: dict[str, Any] = {"codes": self._codes, "regions": self.regions, "pictures": self.pictures}
            self._cases = ValidationCases(self.validator, class_names=self.class_names, **options)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.failed)

    def start(self, engine: Any) -> None:
        """Open the run or continue it; raise a ConfigError if the store of a new training run cannot be used."""
        if not engine.has_event_handler(self.epoch_completed, Events.EPOCH_COMPLETED):
            handlers = [handler for handler, *_ in engine._event_handlers[Events.EPOCH_COMPLETED]]
            if not any(isinstance(getattr(handler, "__self__", None), HistoryHandler) for handler in handlers):
                options = {"validator": self.validator, "class_names": self.class_names[1:], "resume": self.resume}
                history = HistoryHandler(self.folder, optimizer=engine.optimizer, **options)
                history.attach(engine)
                history.start(engine)
            # registered now, so that it runs after all other handlers of an epoch (validation, history, checkpoint)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        server = Server(str(self.tracking_uri), experiment_name=self.experiment_name)
        is_new = self._open(server)
        write_atomically(Path(self.folder) / CASES_NAME, json.dumps(self._codes, indent=1, ensure_ascii=False))
        self._describe(engine, is_new=is_new)
        self._server = server
        self._deliveries = tuple(Delivery(server, file) for file in (self._record_file, self._parent_file))
        self._is_silent, self._silent_until = False, 0.0
        self._deliver()  # now, so that MONAI's handler (`--tracking mlflow`) finds the run
        self._worker, self._ended = ThreadPoolExecutor(1, "medunet-tracking"), threading.Event()
        self._later(self._log_datasets)
        self._system = SystemMetrics(Path(self.folder) / SAMPLES_NAME) if self.system_metrics else None
        if self._system is not None:
            self._system.start()

    def epoch_completed(self, engine: Any) -> None:
        """Send the newest entry of the history; draw cases in the background, because that takes longer than a step."""
        if not self._deliveries:
            return
        if self._cases is not None and self._is_shown(engine):
            self._later(partial(self._write, "validation/cases.csv", self._cases.table()))
            for rank, draw in self._cases.selected().items():
                self._later(partial(self._write, f"validation/epoch_{engine.state.epoch:05d}_{rank}.png", draw))
        if time.monotonic() >= self._silent_until:
            self._deliver()

    def complete(self, engine: Any) -> None:
        """Log the results and end the run."""
        self._finish(engine, "FINISHED")

    def failed(self, engine: Any, error: BaseException) -> None:
        """End the run, and re-raise the error."""
        self._finish(engine, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        # ignite leaves it to its handlers to raise the error again; the last of them has to
        if engine._event_handlers[Events.EXCEPTION_RAISED][-1][0] == self.failed:
            raise error

    def _open(self, server: Server) -> bool:
        """Write the records of the run and its parent if they are missing; return whether the run is new."""
        fold, begun = str(self.fold), now()
        tags = {"medunet.version": medunet.__version__, MLFLOW_SOURCE_NAME: "medunet"}
        if revision := git_revision():
            tags |= {MLFLOW_GIT_COMMIT: revision["commit"], "medunet.git_changed": revision["changed"]}
        own = RunRecord.load(self._record_file, uri=server.name) if self.resume else None
        self._training.mkdir(parents=True, exist_ok=True)
        with lock(self._training / f".{PARENT_NAME}.open"):  # folds that start simultaneously share a parent
            parent = RunRecord.load(self._parent_file, uri=server.name)
            if parent is None or (own is None and fold in parent.folds):
                # MONAI's handler takes the unfinished run that began first, which must be the fold
                parent = RunRecord(server.name, self.experiment_name, self._name, begun + 1)
                parent.tags = {"medunet.kind": "training", **tags}
                with server.required(purpose="cannot log to MLflow", remedy=REMEDY):
                    parent.run_id = server.create_run(**parent.creation)
                write_atomically(self._parent_file, parent.text)
                own = None
            with RunRecord.edit(self._parent_file) as stored:
                stored.folds.setdefault(fold, {})
        if own is not None:
            return False
        if not self.resume:  # files of an earlier run in this folder
            shutil.rmtree(self._record_file.with_suffix(""), ignore_errors=True)
            self._record_file.with_name(SAMPLES_NAME).unlink(missing_ok=True)
        own = RunRecord(server.name, self.experiment_name, f"{self._name} fold {fold}", begun)
        own.tags = {"medunet.kind": "fold", "medunet.fold": fold, MLFLOW_PARENT_RUN_ID: parent.run_id, **tags}
        write_atomically(self._record_file, own.text)
        return True

    def _describe(self, engine: Any, *, is_new: bool) -> None:
        """Write parameters, configuration and environment to the records of the run and its parent."""
        files = {} if self._bundle is None else text_files(self._bundle, self._codes)
        config = json.loads(files.get("configs/train.json", "{}"))
        plain = (bool, int, float, str, list, dict, type(None))
        given = {key: value if isinstance(value, plain) else str(value) for key, value in self.params.items()}
        machine = environment()
        given = anonymous_config(given, self._codes)
        params = flat_parameters({**config, **given, "max_epochs": engine.state.max_epochs})
        params |= {f"version::{name}": version for name, version in machine["packages"].items()}
        params |= {f"device::{name}": show(value) for name, value in machine["device"].items()}
        origin = json.loads(files.get(CHANGES, "{}"))
        changed = changed_parameters(origin.get("changed", {}))
        for file, left_out in ((self._parent_file, "fold"), (self._record_file, "")):  # the parent has all folds
            differing = {key: pair for key, pair in changed.items() if key != left_out}
            with RunRecord.edit(file) as record:
                record.status, record.end_time, record.is_synced = "RUNNING", None, False
                record.sent_epoch = min(record.sent_epoch, engine.state.epoch)
                if is_new:  # MLflow rejects another value, such as more epochs
                    record.params = {key: value for key, value in params.items() if key != left_out} | record.params
                if origin:
                    record.tags[MLFLOW_RUN_NOTE] = describe(str(origin.get("bundle", "")), differing)
                if differing:
                    record.tags["medunet.changed"] = ", ".join(differing)[:5000]
        for name, text in files.items():
            if not name.endswith("LICENSE"):
                self._write(name.replace("configs/", "config/", 1), text)
        self._write("environment/environment.json", json.dumps({**machine, "git": git_revision()}, indent=2))
        self._write("environment/requirements.txt", packages())

    def _write(self, name: str, content: str | bytes | Callable[[], bytes]) -> None:
        """Write a file that becomes an artifact of the run."""
        write_atomically(self._record_file.with_suffix("") / name, content() if callable(content) else content)

    def _deliver(self) -> None:
        """Send what is new. A failure logs one warning; after a slow response, sending pauses for a while."""
        begun = time.monotonic()
        try:
            self._send(PROBE_SECONDS)
            self._is_silent = False
        except Exception as error:  # MLflow raises many types, and none of them may end a training run
            if not self._is_silent:
                text = "MLflow at %s (%s) is not used for now; training continues, " + LATER
                logger.warning(text, self._server.name, self._server.describe(error), self._bundle or self.folder)
            self._is_silent = True
        ended = time.monotonic()
        self._silent_until = ended + (ended - begun) / TIME_SHARE

    def _send(self, seconds: int) -> None:
        with limits(seconds):
            for delivery in self._deliveries:
                delivery.run()

    def _later(self, work: Callable[[], object]) -> None:
        """Do work that takes longer than a step in another thread; an error is a warning."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                logger.warning("not logged to MLflow: %s", error, exc_info=True)

        self._newest: Future[None] = self._worker.submit(guarded)

    def _is_shown(self, engine: Any) -> bool:
        """Return whether this epoch's weights are kept and the epoch is the best so far or the last."""
        epoch, state = engine.state.epoch, self.validator.state
        if not epoch == state.epoch == getattr(engine.state, "kept_epoch", 0):
            return False
        is_end = epoch == engine.state.max_epochs or engine.should_terminate
        return bool(is_end or epoch == getattr(state, "best_metric_epoch", 0))

    def _log_datasets(self) -> None:
        name = Path(self.dataset_dir).resolve().name if self.dataset_dir else "dataset"
        parts = [[item for item in getattr(one, "data", ()) if isinstance(item, Mapping)] for one in self.datasets]
        record = partial(dataset_record, name, stop=self._ended.is_set)
        contexts = zip(parts, ("training", "validation"), strict=False)
        own = [record(items, context=context) for items, context in contexts if items]
        with RunRecord.edit(self._record_file) as run:
            run.datasets = own
        if whole := [item for items in parts for item in items]:  # the same in all folds
            digest = record(whole, context="training")
            with RunRecord.edit(self._parent_file) as parent:
                parent.datasets = [digest]

    def _finish(self, engine: Any, status: str) -> None:
        if not self._deliveries:
            return
        if self._system is not None:
            self._system.finish()
        is_finished = status == "FINISHED"
        wait([self._newest], timeout=self.patience if is_finished else min(self.patience, 10.0))
        self._ended.set()
        self._worker.shutdown(cancel_futures=True)
        try:
            self._log_end(engine, status)
            self._server.probe()
            self._send(PATIENT_SECONDS if is_finished else PROBE_SECONDS)
        except Exception as error:  # the run is trained; it must not end in an error
            text = "the end of the training run is not in MLflow (%s); " + LATER
            logger.warning(text, self._server.describe(error), self._bundle or self.folder)
        self._deliveries = ()

    def _log_end(self, engine: Any, status: str) -> None:
        if history := list(getattr(engine.state, "history", ())):
            self._write("plots/curves.png", render_curves(history))
        best, time = self._best(engine), now()
        with RunRecord.edit(self._record_file) as run:
            run.status, run.end_time = status, time
            run.add(best, time=time, step=int(best.get("best_epoch", 0)))
            if self.model and self._bundle and (self._bundle / "models" / "model.pt").is_file():
                is_alone = self._training.resolve() == self._bundle.resolve()  # else the ensemble is registered
                run.bundle = os.path.relpath(self._bundle, self.folder)
                run.model = model_name(self._name) if is_alone else ""
        with RunRecord.edit(self._parent_file) as parent:
            parent.status, parent.end_time = status, time
            if best:
                parent.folds[str(self.fold)] = best
                trained = [entry for entry in parent.folds.values() if entry]
                common = [key for key in best if all(key in entry for entry in trained) and not key.endswith("_epoch")]
                means = {key: sum(entry[key] for entry in trained) / len(trained) for key in common}
                parent.add(means, time=time, step=len(trained))

    def _best(self, engine: Any) -> dict[str, float]:
        """Return the metrics of the epoch with the best validation, and of the one whose weights are kept."""
        state = getattr(self.validator, "state", None)
        metric = getattr(state, "best_metric", None)
        if state is None or metric is None or state.best_metric_epoch < 1:
            return {}
        name, kept = state.key_metric_name, getattr(engine.state, "kept_epoch", 0)
        best = {f"best_{name}": float(metric), "best_epoch": float(state.best_metric_epoch)}
        values = {entry["epoch"]: entry.get("val_metrics", {}) for entry in getattr(engine.state, "history", ())}
        if name in values.get(kept, {}):
            best |= {f"kept_{key}": value for key, value in values[kept].items()} | {"kept_epoch": float(kept)}
        return best


def track_cross_validation(
    folder: Path, *, uri: str | None, summary: Mapping[str, Any], table: Path, names: Iterable[str]
) -> None:
    """Log out-of-fold metrics, the table of cases and the ensemble to the parent run, if there is one.

    Args:
        folder: folder of the cross-validation, which is the bundle of the ensemble.
        uri: the store. Default: the one of the folds.
        summary: result of :func:`medunet.metrics.summarise`.
        table: CSV file with the metrics of each case.
        names: names of all cases.
    """
    file = folder / PARENT_NAME
    known = RunRecord.load(file)
    if known is None:
        return
    server, codes = Server(uri or known.uri, experiment_name=known.experiment), CaseCodes(names)
    values = {f"out_of_fold_{key}": summary[key] for key in ("mean_dice", "mean_ap") if key in summary}
    for name, entry in summary["classes"].items():
        values |= {f"out_of_fold_{key}_{name}": score["mean"] for key, score in entry["scores"].items()}
    try:
        rows = pandas.read_csv(table, dtype=str, keep_default_na=False)
        rows["case"] = [codes[name] for name in rows["case"]]
        write_atomically(
            file.with_suffix("") / "out_of_fold" / "metrics.csv", rows.to_csv(index=False, lineterminator="\n")
        )
        write_atomically(file.with_name(CASES_NAME), json.dumps(codes, indent=1, ensure_ascii=False))
        with RunRecord.edit(file) as record:
            record.add({key: value for key, value in values.items() if value is not None}, time=now(), step=0)
            record.bundle, record.model = ".", model_name(folder.resolve().name)
            record.status, record.end_time, record.is_synced = "FINISHED", now(), False
        server.probe()
        with limits(PATIENT_SECONDS):
            Delivery(server, file).run()
    except Exception as error:  # the folds are trained; the cross-validation must not end in an error
        logger.warning("the cross-validation is not in MLflow (%s); " + LATER, server.describe(error), folder)
