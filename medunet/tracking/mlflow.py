"""A training in MLflow: one parent run a training, a child run a fold, and no step that waits for a server."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME

import medunet
from medunet.files import lock, write_atomically
from medunet.reports import render_curves
from medunet.training import HistoryHandler

from .anonymous import anonymous_config, pack_bundle, text_files
from .background import Background
from .case_codes import CaseCodes
from .dataset import dataset_record
from .environment import environment, git_revision, packages
from .journal import Journal
from .logged_model import model_name
from .parameters import changed_parameters, describe, flat_parameters, show
from .pictures import Picture, ValidationCases
from .sender import Delivery, Sender
from .server import Server, now
from .spool import Spool
from .state import PARENT_NAME, STATE_NAME, RunState
from .system import SystemMetrics

logger = logging.getLogger(__name__)

SPOOL = "tracking"
"""Folder in a run's output for what waits for the server."""

CASES_NAME = "cases.json"
"""In a run's output: which case has which number. It stays on this machine."""

PATIENCE = 60.0
"""Seconds that the end of a training may wait for a server that answers."""


class TrackingHandler:
    """Logs a training to MLflow; by default a SQLite file beside the run.

    Losses and validation metrics are those of the :class:`medunet.training.HistoryHandler` of the trainer; without one,
    this handler attaches its own, which writes ``folder/history.json``.

    All goes through a spool on the disk (`folder/tracking`) and a thread of its own, so that no step waits. A server
    that is down before the training is an error, for then nothing is lost yet; one that goes down later is a warning:
    what it should have got is kept and sent as soon as it answers, by a later training in the same folder, or by
    `medunet runs sync`. A training that is resumed goes on in its run.

    Cases are numbered, absolute paths left out: nothing logged names a patient. `folder/cases.json` has the names.

    Args:
        tracking_uri: ``sqlite:///...`` or the address of a server; ``None`` or ``""`` turns tracking off.
        folder: the output folder of the training.
        training_dir: folder that the folds of one training have in common; by default each training is its own.
        bundle_root: the bundle that is trained.
        dataset_dir: its data; the folder's name is logged.
        experiment_name: MLflow experiment.
        run_name: of the parent run; by default the name of the training's folder.
        fold: which.
        datasets: training and validation data, with ``data`` as of :func:`medunet.datasets.datalist`.
        validator: evaluator whose metrics are logged in the epochs in which it ran.
        class_names: all classes, background first.
        params: values as they came to be, over those of the bundle's ``train.json``.
        regions: class indices of each class where they overlap, as the validator's postprocessing has them.
        pictures: draw the worst, median and best validation case of each best epoch, and of the last where it is kept.
        system_metrics: log MLflow's system and GPU metrics.
        model: pack the bundle at the end and make it the run's model; registered under the training's name.
        resume: go on in the run that the folder belongs to.
        patience: seconds that the end of the training may wait for a server that answers, and for the digest of the
            data set.
        is_writer: False on all but the first process.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None,
        folder: str,
        training_dir: str | None = None,
        bundle_root: str | None = None,
        dataset_dir: str | None = None,
        experiment_name: str = "medunet",
        run_name: str | None = None,
        fold: int = 0,
        datasets: Sequence[Any] = (),
        validator: Any = None,
        class_names: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        regions: Sequence[Sequence[int]] = (),
        pictures: bool = True,
        system_metrics: bool = True,
        model: bool = True,
        resume: bool = False,
        patience: float = PATIENCE,
        is_writer: bool = True,
    ) -> None:
        self.tracking_uri = tracking_uri
        self.folder = Path(folder)
        self.bundle_root = Path(bundle_root) if bundle_root else None
        self.training_dir = Path(training_dir) if training_dir else self.bundle_root or self.folder
        self.dataset_dir = Path(dataset_dir) if dataset_dir else None
        self.experiment_name = experiment_name
        self.run_name = run_name or self.training_dir.resolve().name
        self.fold = fold
        self.datasets = tuple(datasets)
        self.validator = validator
        self.class_names = tuple(class_names)
        self.params = dict(params or {})
        self.regions = regions
        self.pictures = pictures
        self.system_metrics = system_metrics
        self.model = model
        self.resume = resume
        self.patience = patience
        self.is_writer = is_writer
        self._cases: ValidationCases | None = None
        self._sender: Sender | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, right after its checkpoint handler: a server that is down is found out first."""
        if not self.tracking_uri or not self.is_writer:
            return
        names = [str(item.get("name", "")) for dataset in self.datasets for item in getattr(dataset, "data", ())]
        self.codes = CaseCodes(names)
        if self.validator is not None:
            self._cases = ValidationCases(
                self.validator,
                class_names=self.class_names,
                codes=self.codes,
                regions=self.regions,
                keep=self.pictures,
            )
            self._cases.attach(self.validator)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.COMPLETED, self.complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.failed)

    def start(self, engine: Any) -> None:
        """Open the run, or go on in it.

        Raises:
            ConfigError: the store of a new training cannot be used.
        """
        # registered only now, so that it runs after all other handlers of an epoch (validation, history, checkpoint)
        if not engine.has_event_handler(self.epoch_completed, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        self._begun = now()
        server = Server(str(self.tracking_uri), experiment_name=self.experiment_name)
        with self._parent_lock():
            parent, state, is_new = self._states(server)
        spool = Spool(self.folder / SPOOL)
        self._sender = Sender(Delivery(spool, server, self._state_file))
        self._spool = spool
        self._parent = Journal(spool, run_id=parent.run_id, wake=self._sender.wake)
        self._run = Journal(spool, key=state.key, wake=self._sender.wake)
        self._background = Background()
        write_atomically(self.folder / CASES_NAME, json.dumps(self.codes.codes, indent=1, ensure_ascii=False))
        if is_new:
            tags = {"medunet.kind": "fold", "medunet.fold": str(self.fold), MLFLOW_PARENT_RUN_ID: parent.run_id}
            self._run.create(
                f"{self.run_name} fold {self.fold}", {**tags, **self._common_tags()}, start_time=self._begun
            )
            self._sender.delivery.run()  # at once, so that MONAI's handler (`--tracking mlflow`) finds it
        for journal in (self._parent, self._run):
            journal.status("RUNNING")
        self._sender.start()
        self._log_start(engine, is_new=is_new)
        self._system: SystemMetrics | None = None
        if self.system_metrics:
            first = 0 if is_new else now() // 10_000 % 2**31  # beyond all samples of the part before
            self._system = SystemMetrics(lambda values, step: self._run.metrics(values, step=step), first_step=first)
            self._system.start()
        self._is_new, self._has_history = is_new, False

    def epoch_started(self, engine: Any) -> None:
        """Take over the history, which a handler may have read at the start; in a trainer without one, begin it."""
        if self._sender is None or self._has_history:
            return
        self._has_history = True
        if not hasattr(engine.state, "history"):
            options = {"validator": self.validator, "class_names": self.class_names[1:], "resume": self.resume}
            history = HistoryHandler(str(self.folder), optimizer=engine.optimizer, **options)
            engine.remove_event_handler(self.epoch_completed, Events.EPOCH_COMPLETED)  # it comes after the history
            history.attach(engine)
            history.start(engine)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        logged = 0 if self._is_new else self._logged_epoch()
        for entry in engine.state.history:
            if entry["epoch"] > logged:  # a killed process could not log it
                self._log_epoch(entry)

    def epoch_completed(self, engine: Any) -> None:
        """Log the newest entry of the history."""
        history = getattr(engine.state, "history", None)
        if not history or self._sender is None:
            return
        entry = history[-1]
        self._log_epoch(entry)
        if self._cases is not None and self._is_shown(engine, entry["epoch"]):
            table, chosen = self._cases.table(), self._cases.chosen() if self.pictures else []
            self._background.submit(lambda: self._log_cases(entry["epoch"], table, chosen))

    def _is_shown(self, engine: Any, epoch: int) -> bool:
        """Whether weights are kept of this epoch, and it is the best so far or the last of all."""
        state = self.validator.state
        if not epoch == state.epoch == getattr(engine.state, "kept_epoch", 0):
            return False
        is_end = epoch == engine.state.max_epochs or engine.should_terminate
        return bool(is_end or epoch == getattr(state, "best_metric_epoch", 0))

    def complete(self, engine: Any) -> None:
        """Log what came of it, and close the run."""
        self._finish(engine, "FINISHED")

    def failed(self, engine: Any, error: BaseException) -> None:
        """Close the run; the error goes on its way."""
        self._finish(engine, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        # ignite leaves it to its handlers to raise the error again; the last of them has to
        if engine._event_handlers[Events.EXCEPTION_RAISED][-1][0] == self.failed:
            raise error

    def _states(self, server: Server) -> tuple[RunState, RunState, bool]:
        """Parent, child, and whether the child is new."""
        fold = str(self.fold)
        parent = RunState.load(self._parent_file, uri=server.name)
        state = RunState.load(self._state_file, uri=server.name) if self.resume else None
        if parent is None or not parent.run_id or (state is None and fold in parent.folds):
            server.check()
            parent, state = RunState(server.name, self.experiment_name), None
            tags = {"medunet.kind": "training", **self._common_tags()}
            # MONAI's handler takes the unfinished run that began first: that is to be the fold
            begun = self._begun + 1
            parent.run_id = server.create_run(key=parent.key, name=self.run_name, tags=tags, start_time=begun)
        parent.folds.setdefault(fold, {})
        parent.save(self._parent_file)
        is_new = state is None
        if state is None:
            state = RunState(server.name, self.experiment_name, parent=parent.run_id)
            state.save(self._state_file)
        return parent, state, is_new

    def _common_tags(self) -> dict[str, str]:
        revision = git_revision()
        tags = {"medunet.version": medunet.__version__, MLFLOW_SOURCE_NAME: "medunet"}
        if revision:
            tags |= {MLFLOW_GIT_COMMIT: revision["commit"], "medunet.git_changed": revision["changed"]}
        return tags

    def _log_start(self, engine: Any, *, is_new: bool) -> None:
        """Parameters, configuration, environment, data."""
        files = {} if self.bundle_root is None else text_files(self.bundle_root, self.codes)
        config = json.loads(files.get("configs/train.json", "{}"))
        given = anonymous_config({key: _plain(value) for key, value in self.params.items()}, self.codes)
        surroundings = environment()
        values = flat_parameters({**config, **given, "max_epochs": engine.state.max_epochs})
        values |= {f"version::{name}": version for name, version in surroundings["packages"].items()}
        values |= {f"device::{name}": show(value) for name, value in surroundings["device"].items()}
        origin = json.loads(files.get("docs/changes.json", "{}"))
        changed = changed_parameters(origin.get("changed", {}))
        for journal in (self._parent, self._run):
            left_out = {"fold"} if journal is self._parent else set()  # it is of all folds
            own = {key: value for key, value in values.items() if key not in left_out}
            told = {key: pair for key, pair in changed.items() if key not in left_out}
            if is_new:  # MLflow rejects another value, such as more epochs
                journal.params(own)
            tags = {MLFLOW_RUN_NOTE: describe(str(origin.get("bundle", "")), told)} if origin else {}
            if told:
                tags["medunet.changed"] = ", ".join(told)[:5000]
            if tags:
                journal.tags(tags)
        for name, text in files.items():
            if not name.endswith("LICENSE"):
                self._run.file(name.replace("configs/", "config/", 1), text)
        self._run.json("environment/environment.json", {**surroundings, "git": git_revision()})
        self._run.file("environment/requirements.txt", packages())
        self._background.submit(self._log_datasets)

    def _log_datasets(self) -> None:
        name = self.dataset_dir.resolve().name if self.dataset_dir is not None else "dataset"
        whole: list[Mapping[str, Any]] = []
        for dataset, context in zip(self.datasets, ("training", "validation"), strict=False):
            items = [item for item in getattr(dataset, "data", ()) if isinstance(item, Mapping)]
            whole += items
            if items:
                self._run.record(dataset_record(name, items, context=context, stop=self._background.is_stopped))
        if whole:  # of all folds the same
            self._parent.record(dataset_record(name, whole, context="training", stop=self._background.is_stopped))

    def _log_epoch(self, entry: Mapping[str, Any]) -> None:
        names = {"loss": "loss", "lr": "lr", "seconds": "epoch_seconds", "steps_per_second": "steps_per_second"}
        values = {name: entry[key] for key, name in {**names, "data_wait": "data_wait"}.items() if key in entry}
        values |= {f"loss/{name}": value for name, value in entry.get("loss_terms", {}).items()}
        values |= entry.get("val_metrics", {})
        values |= {f"val_dice_{name}": value for name, value in entry.get("val_dice", {}).items()}
        self._run.metrics(values, step=entry["epoch"])
        write_atomically(self._logged_file, json.dumps(entry["epoch"]))

    def _parent_lock(self) -> AbstractContextManager[bool]:
        """Folds that are trained at the same time share a parent."""
        self.training_dir.mkdir(parents=True, exist_ok=True)
        return lock(self._parent_file.with_name(f".{PARENT_NAME}.lock"))

    @property
    def _parent_file(self) -> Path:
        return self.training_dir / PARENT_NAME

    @property
    def _state_file(self) -> Path:
        return self.folder / STATE_NAME

    @property
    def _logged_file(self) -> Path:
        return self.folder / SPOOL / "logged_epoch"

    def _logged_epoch(self) -> int:
        return int(self._logged_file.read_text(encoding="ascii")) if self._logged_file.is_file() else 0

    def _log_cases(self, epoch: int, table: str, chosen: Sequence[Picture]) -> None:
        self._run.file("validation/cases.csv", table)
        for picture in chosen:
            self._run.file(f"validation/epoch_{epoch:05d}_{picture.rank}.png", picture.render())

    def _finish(self, engine: Any, status: str) -> None:
        if self._sender is None:
            return
        sender, self._sender = self._sender, None
        if self._system is not None:
            self._system.finish()
        patience = self.patience if status == "FINISHED" else min(self.patience, 10.0)
        self._background.finish(patience)
        try:
            self._log_end(engine, status)
        except Exception as error:  # what was trained is there; it must not end in an error
            logger.warning("the end of the training could not be logged: %s", error, exc_info=True)
        left = sender.close(patience)
        if left:
            logger.warning(
                "%d records wait for MLflow in %s; `medunet runs sync %s` sends them",
                *(left, self._spool.folder, self.bundle_root or self.folder),
            )

    def _log_end(self, engine: Any, status: str) -> None:
        history = list(getattr(engine.state, "history", ()))
        if history:
            self._run.file("plots/curves.png", render_curves(history))
            self._run.json("history.json", history)
        best = self._best(engine)
        if best:
            self._run.metrics(best, step=int(best["best_epoch"]))
        if (
            status == "FINISHED"
            and self.model
            and self.bundle_root
            and (self.bundle_root / "models/model.pt").is_file()
        ):
            packed = pack_bundle(self.bundle_root, self.codes)
            self._run.file("bundle.zip", packed)
            is_alone = self.training_dir.resolve() == self.bundle_root.resolve()  # else the ensemble is registered
            self._run.model(packed, name=model_name(self.run_name) if is_alone else "")
        with self._parent_lock():
            parent = RunState.load(self._parent_file)
            if parent is not None and best:
                parent.folds[str(self.fold)] = best
                parent.save(self._parent_file)
        if parent is not None and best:
            trained = [entry for entry in parent.folds.values() if entry]
            common = [key for key in best if all(key in entry for entry in trained) and not key.endswith("_epoch")]
            means = {key: sum(entry[key] for entry in trained) / len(trained) for key in common}
            self._parent.metrics(means, step=len(trained))
        for journal in (self._run, self._parent):
            journal.status(status)

    def _best(self, engine: Any) -> dict[str, float]:
        """Of the epoch with the best validation, and of the one whose weights are kept."""
        state = getattr(self.validator, "state", None)
        metric = getattr(state, "best_metric", None)
        if state is None or metric is None or state.best_metric_epoch < 1:
            return {}
        name, kept = state.key_metric_name, getattr(engine.state, "kept_epoch", 0)
        best = {f"best_{name}": float(metric), "best_epoch": float(state.best_metric_epoch)}
        for entry in getattr(engine.state, "history", ()):
            if entry["epoch"] == kept and name in entry.get("val_metrics", {}):
                best |= {f"kept_{name}": entry["val_metrics"][name], "kept_epoch": float(kept)}
        return best


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)
