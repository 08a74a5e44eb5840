"""A run's record: a JSON file in its folder with everything that MLflow shows of it, and what was sent."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from medunet.errors import DataError
from medunet.files import lock, write_atomically
from medunet.training import HISTORY_NAME

from .anonymous import CaseCodes, pack_bundle
from .bundle_model import log_model
from .server import Server

logger = logging.getLogger(__name__)

PARENT_NAME = "training.json"  # in the folder of a training: the record of the parent run
RECORD_NAME = "tracking.json"  # in the output folder of each fold: the record of the child run
SAMPLES_NAME = "system_metrics.jsonl"  # one line per sample of the system metrics
CASES_NAME = "cases.json"  # the code of each case; it stays on this machine

LATER = "`medunet runs sync %s` sends what is missing"

REJECTED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")
"""Error codes of MLflow about what was sent. Another attempt would not change the answer."""


@dataclass
class RunRecord:
    """One MLflow run. Its files are in the folder beside the record that has the record's name."""

    uri: str  # the store, without credentials
    experiment: str
    name: str
    start_time: int  # milliseconds since 1970, as all times
    key: str = field(default_factory=lambda: secrets.token_hex(16))  # tag that finds a run that was not noted
    run_id: str = ""  # MLflow's id, once the run is created
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)  # see `dataset_record`
    metrics: list[list[Any]] = field(default_factory=list)  # [key, value, time, step], beside those of the history
    bundle: str = ""  # path from the record's folder to the trained bundle; empty: no model is logged
    model: str = ""  # name of the registered model; empty: the model is not registered
    status: str = "RUNNING"  # or FINISHED, FAILED, KILLED
    end_time: int | None = None
    folds: dict[str, dict[str, float]] = field(default_factory=dict)  # of a parent: metrics of its folds
    sent_epoch: int = 0  # the last epoch of the history that was sent
    sent_samples: int = 0  # number of samples of the system metrics that were sent
    is_synced: bool = False  # whether the run has ended and MLflow has everything

    @classmethod
    def load(cls, path: Path, *, uri: str | None = None) -> RunRecord | None:
        """Read a record; None if there is none, it cannot be read, or it is of another store than `uri`."""
        try:
            record = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return record if uri in (None, record.uri) else None

    @classmethod
    @contextmanager
    def edit(cls, path: Path) -> Iterator[RunRecord]:
        """Read a record and write it if the block changes it; threads and processes take turns.

        Raises:
            DataError: the record is missing.
        """
        with lock(path.with_name(f".{path.name}.lock")):
            record = cls.load(path)
            if record is None:
                raise DataError("the record of an MLflow run cannot be read", file=path)
            before = record.text
            yield record
            if record.text != before:
                write_atomically(path, record.text)

    @property
    def creation(self) -> dict[str, Any]:
        """Arguments of :meth:`Server.create_run`."""
        return {"key": self.key, "name": self.name, "tags": self.tags, "start_time": self.start_time}

    @property
    def text(self) -> str:
        """The record as JSON."""
        return json.dumps(asdict(self), indent=1)

    def add(self, values: Mapping[str, float], *, time: int, step: int) -> None:
        """Add metrics of one point in time."""
        self.metrics += [list(point) for point in points(values, time=time, step=step)]


class Delivery:
    """Brings an MLflow run up to date with its record.

    Args:
        server: the store.
        file: the record.
    """

    def __init__(self, server: Server, file: Path) -> None:
        self.server = server
        self.file = file
        self._sent: dict[str, Any] = {}
        self._is_rejected = False

    def run(self) -> bool:
        """Create the run if necessary, and send what has changed since the last call of this object.

        Returns:
            Whether MLflow has accepted everything.

        Raises:
            Exception: of many types, if the store cannot be reached. The next call repeats what was not sent.
        """
        record = RunRecord.load(self.file)
        if record is None:
            raise DataError("the record of an MLflow run cannot be read", file=self.file)
        if not record.run_id:
            record.run_id = self.server.create_run(**record.creation)
            with RunRecord.edit(self.file) as noted:
                noted.run_id = record.run_id
        server, run_id, has_ended = self.server, record.run_id, record.status != "RUNNING"
        epochs = [entry for entry in _history(self.file.parent) if entry["epoch"] > record.sent_epoch]
        samples = _samples(self.file.parent, record.sent_samples)
        measured = [point for entry in epochs for point in epoch_points(entry)]
        measured += [tuple(point) for sample in samples for point in sample]
        self._part("params", record.params, lambda: server.log_params(run_id, record.params))
        self._part("tags", record.tags, lambda: server.log_tags(run_id, record.tags))
        self._part("datasets", record.datasets, lambda: server.log_datasets(run_id, record.datasets))
        self._part("metrics", record.metrics, lambda: server.log_metrics(run_id, map(tuple, record.metrics)))
        self._part("curves", measured, lambda: server.log_metrics(run_id, measured))
        self._files(run_id, has_ended=has_ended)
        if record.status == "FINISHED" and record.bundle:
            self._part("model", record.end_time, lambda: self._model(record))
        state = (record.status, record.end_time)
        self._part("status", state, lambda: server.set_status(run_id, *state))
        with RunRecord.edit(self.file) as noted:
            noted.is_synced = has_ended and not self._is_rejected and noted.text == record.text
            noted.sent_epoch = max([record.sent_epoch, *(entry["epoch"] for entry in epochs)])
            noted.sent_samples += len(samples)
        return not self._is_rejected

    def _part(self, name: str, value: Any, send: Callable[[], None]) -> None:
        """Send a part that has changed. A part that MLflow rejects does not hold up the others."""
        if not value or self._sent.get(name) == value:
            return
        try:
            send()
        except MlflowException as error:
            if error.error_code not in REJECTED:
                raise
            self._is_rejected = True
            logger.warning("MLflow rejects %s of %s: %s", name, self.file, self.server.describe(error))
        self._sent[name] = copy.deepcopy(value)

    def _files(self, run_id: str, *, has_ended: bool) -> None:
        root = self.file.with_suffix("")
        files = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
        if has_ended and (history := self.file.with_name(HISTORY_NAME)).is_file():
            files[Path(HISTORY_NAME)] = history
        for name, path in files.items():
            if not path.name.startswith("."):  # one that is being written
                folder = None if name.parent == Path() else name.parent.as_posix()
                send = partial(self.server.client.log_artifact, run_id, str(path), folder)
                self._part(name.as_posix(), path.stat().st_mtime_ns, send)

    def _model(self, record: RunRecord) -> None:
        bundle = self.file.parent / record.bundle
        if not (bundle / "models").is_dir():
            return
        codes = CaseCodes(json.loads((self.file.with_name(CASES_NAME)).read_text(encoding="utf-8")))
        with tempfile.TemporaryDirectory() as temporary:
            packed = Path(temporary) / "bundle.zip"
            packed.write_bytes(pack_bundle(bundle, codes))
            self.server.client.log_artifact(record.run_id, str(packed))
            options: dict[str, Any] = {"name": record.model, "time": record.end_time}
            log_model(packed, client=self.server.client, run_id=record.run_id, **options)


def points(values: Mapping[str, float], *, time: int, step: int) -> list[tuple[str, float, int, int]]:
    """Metrics of one point in time for :meth:`Server.log_metrics`; MLflow rejects infinite values."""
    return [(metric_name(key), float(value), time, step) for key, value in values.items() if not math.isinf(value)]


def epoch_points(entry: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """The metrics of an entry of ``history.json``."""
    names = {"loss": "loss", "lr": "lr", "seconds": "epoch_seconds"}
    names |= {key: key for key in ("steps_per_second", "data_wait")}
    values = {name: entry[key] for key, name in names.items() if key in entry}
    values |= {f"loss/{name}": value for name, value in entry.get("loss_terms", {}).items()}
    values |= entry.get("val_metrics", {})
    values |= {f"val_dice_{name}": value for name, value in entry.get("val_dice", {}).items()}
    return points(values, time=entry["time"], step=entry["epoch"])


def metric_name(text: str) -> str:
    """A name that MLflow accepts: letters, digits and ``_-. :/``.

    Example:
        >>> metric_name("val_dice_Nerv (links)")
        'val_dice_Nerv _links_'
    """
    return re.sub(r"[^\w./ :-]", "_", text).strip("/")[:250]


def _history(folder: Path) -> list[dict[str, Any]]:
    path = folder / HISTORY_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _samples(folder: Path, first: int) -> list[list[list[Any]]]:
    """The points of each sample from the first one on; none if its line is damaged."""
    path = folder / SAMPLES_NAME
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines()[first:] if path.is_file() else ():
        try:
            samples.append(json.loads(line))
        except ValueError:
            samples.append([])
    return samples
