"""A run's record: a JSON file in its folder with everything that MLflow shows about it, and what was sent."""

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

from .anonymous import CaseCodes, copy_bundle, zip_folder
from .bundle_model import log_model
from .server import Server

logger = logging.getLogger(__name__)

PARENT_NAME = "training.json"  # in the folder of a training: the record of the parent run
RECORD_NAME = "tracking.json"  # in the output folder of each fold: the record of the child run
SAMPLES_NAME = "system_metrics.jsonl"  # one line per sample of the system metrics
CASES_NAME = "cases.json"  # the code of each case; it stays on this machine

LATER = "`medunet runs sync %s` sends what is missing"

# error codes of MLflow about what was sent; another attempt would not change the answer
REJECTED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")


@dataclass
class RunRecord:
    """One MLflow run. Its files are in the folder beside the record that has the record's name."""

    uri: str  # the store, without credentials
    experiment: str
    name: str
    start_time: int  # milliseconds since 1970, as all times
    key: str = field(default_factory=lambda: secrets.token_hex(16))  # see KEY_TAG of the server
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
    def load(cls, path: Path, *, uri: str | None = None) -> "RunRecord | None":
        """Read a record; None if it is missing, cannot be read, or belongs to a store other than `uri`."""
        try:
            record = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return record if uri in (None, record.uri) else None

    @classmethod
    def require(cls, path: Path) -> "RunRecord":
        """Read a record, or raise a DataError."""
        record = cls.load(path)
        if record is None:
            raise DataError("the record of an MLflow run cannot be read", file=path)
        return record

    @classmethod
    @contextmanager
    def edit(cls, path: Path) -> Iterator["RunRecord"]:
        """Read a record, and write it if the block changes it; threads and processes take turns."""
        with lock(path.with_name(f".{path.name}.lock")):
            record = cls.require(path)
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
    """Brings an MLflow run up to date with its record, a file."""

    def __init__(self, server: Server, file: Path) -> None:
        self.server = server
        self.file = file
        self._sent: dict[str, Any] = {}
        self._is_rejected = False

    def run(self) -> bool:
        """Create the run if necessary, and send what has changed; return whether MLflow has accepted everything.

        If the store cannot be reached, MLflow raises errors of many types; the next call repeats what was not sent.
        """
        record = RunRecord.require(self.file)
        if not record.run_id:
            record.run_id = self.server.create_run(**record.creation)
            with RunRecord.edit(self.file) as stored:
                stored.run_id = record.run_id
        server, run_id, has_ended = self.server, record.run_id, record.status != "RUNNING"
        history, samples = self._file(HISTORY_NAME), self._file(SAMPLES_NAME).splitlines()[record.sent_samples :]
        epochs = [entry for entry in json.loads(history or "[]") if entry["epoch"] > record.sent_epoch]
        curves = [point for entry in epochs for point in epoch_points(entry)]
        curves += [point for line in samples for point in _sample(line)]
        self._part("params", record.params, partial(server.log_params, run_id, record.params))
        self._part("tags", record.tags, partial(server.log_tags, run_id, record.tags))
        self._part("datasets", record.datasets, partial(server.log_datasets, run_id, record.datasets))
        self._part("metrics", record.metrics, partial(server.log_metrics, run_id, record.metrics))
        self._part("curves", curves, partial(server.log_metrics, run_id, curves))
        self._files(run_id, has_ended=has_ended)
        if record.status == "FINISHED" and record.bundle:
            self._part("model", record.end_time, partial(self._model, record))
        state = (record.status, record.end_time)
        self._part("status", state, partial(server.set_status, run_id, *state))
        with RunRecord.edit(self.file) as stored:
            stored.is_synced = has_ended and not self._is_rejected and stored.text == record.text
            stored.sent_epoch = max([record.sent_epoch, *(entry["epoch"] for entry in epochs)])
            stored.sent_samples += len(samples)
        return not self._is_rejected

    def _part(self, name: str, value: Any, send: Callable[[], object]) -> None:
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

    def _file(self, name: str) -> str:
        path = self.file.with_name(name)
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _files(self, run_id: str, *, has_ended: bool) -> None:
        root = self.file.with_suffix("")
        files = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
        if has_ended and (history := self.file.with_name(HISTORY_NAME)).is_file():
            files[Path(HISTORY_NAME)] = history
        for name, path in files.items():
            if not path.name.startswith("."):  # a file that is being written
                folder = None if name.parent == Path() else name.parent.as_posix()
                send = partial(self.server.client.log_artifact, run_id, str(path), folder)
                self._part(name.as_posix(), path.stat().st_mtime_ns, send)

    def _model(self, record: RunRecord) -> None:
        bundle, client = self.file.parent / record.bundle, self.server.client
        if not (bundle / "models").is_dir():
            return
        with tempfile.TemporaryDirectory() as temporary:
            folder, archive = Path(temporary) / "bundle", Path(temporary) / "bundle.zip"
            copy_bundle(bundle, folder, CaseCodes(json.loads(self._file(CASES_NAME))))
            archive.write_bytes(zip_folder(folder))
            client.log_artifact(record.run_id, str(archive))
            log_model(folder, client=client, run_id=record.run_id, name=record.model, time=record.end_time)


def points(values: Mapping[str, float], *, time: int, step: int) -> list[tuple[str, float, int, int]]:
    """Return metrics of one point in time for :meth:`Server.log_metrics`, under names that MLflow accepts.

    Examples:
        >>> points({"val_dice_Nerv (links)": 0.5, "hd95": float("inf")}, time=0, step=1)  # no infinite values either
        [('val_dice_Nerv _links_', 0.5, 0, 1)]
    """
    names = {key: re.sub(r"[^\w./ :-]", "_", key).strip("/")[:250] for key in values}
    return [(names[key], float(value), time, step) for key, value in values.items() if not math.isinf(value)]


def epoch_points(entry: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """Return the metrics of an entry of ``history.json``."""
    names = {"loss": "loss", "lr": "lr", "seconds": "epoch_seconds"}
    names |= {key: key for key in ("steps_per_second", "data_wait")}
    values = {name: entry[key] for key, name in names.items() if key in entry}
    values |= {f"loss/{name}": value for name, value in entry.get("loss_terms", {}).items()}
    values |= entry.get("val_metrics", {})
    values |= {f"val_dice_{name}": value for name, value in entry.get("val_dice", {}).items()}
    return points(values, time=entry["time"], step=entry["epoch"])


def _sample(line: str) -> list[tuple[Any, ...]]:
    """Return the points of a sample of the system metrics; none if the line is damaged."""
    try:
        return [tuple(point) for point in json.loads(line)]
    except ValueError:
        return []
