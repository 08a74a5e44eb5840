"""A tracking store: where it is, whether it answers, and how records get into it."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT
from mlflow.exceptions import MlflowException
from mlflow.tracking.request_header.registry import resolve_request_headers

from medunet.errors import ConfigError
from medunet.files import atomic_path

from .logged_model import log_model

logger = logging.getLogger(__name__)

SQLITE_SCHEME = "sqlite:///"

ARTIFACTS = "mlruns"
"""Folder of the artifacts beside a SQLite file, as MONAI's handler has it."""

KEY_TAG = "medunet.key"
"""Tag with the key of a run's :class:`RunState`."""

PROBE_SECONDS = 5.0
"""A server that says nothing for so long does not answer."""

NO_ENTRY = (401, 403)
"""What a server, or a proxy before it, answers to a login that is not or no longer good."""

PROXY_ALONE = (502, 503, 504)
"""What a proxy answers whose server does not."""

BATCH = 100
"""Parameters and tags in one request; MLflow takes no more."""

MAX_VALUE = 6000
"""Characters of a parameter's value that MLflow keeps."""


class Server:
    """An MLflow tracking store; nothing is opened before the first use.

    Args:
        uri: ``sqlite:///FILE`` or the address of a server.
        experiment_name: where new runs are made.
    """

    def __init__(self, uri: str, *, experiment_name: str = "medunet") -> None:
        self.uri = uri
        self.experiment_name = experiment_name

    @property
    def name(self) -> str:
        """The address without user and password."""
        return without_credentials(self.uri)

    @functools.cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; makes a SQLite store that is not there."""
        if self.uri.startswith(SQLITE_SCHEME):
            path = Path(self.uri.removeprefix(SQLITE_SCHEME))
            if not path.exists():
                _make_store(path)
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)  # else a run that ends prints two lines
        return MlflowClient(self.uri)

    @functools.cached_property
    def experiment_id(self) -> str:
        """Of the experiment, which is made where it is missing."""
        for last in (False, True):
            found = self.client.get_experiment_by_name(self.experiment_name)
            if found is not None:
                if found.lifecycle_stage != "active":
                    raise ConfigError(
                        "the MLflow experiment is deleted",
                        received=self.experiment_name,
                        remedy="restore it, or choose another with --set experiment_name=NAME",
                    )
                return str(found.experiment_id)
            try:
                return str(
                    self.client.create_experiment(self.experiment_name, artifact_location=self._artifact_location())
                )
            except MlflowException as error:
                if last or error.error_code != "RESOURCE_ALREADY_EXISTS":  # another training was quicker
                    raise
        raise AssertionError

    def is_up(self) -> bool:
        """Whether the store answers; any word of it counts, so that logins are MLflow's affair, but not a proxy's."""
        if not self.uri.startswith(("http://", "https://")):
            return True
        health = f"{self.uri.rstrip('/')}/health"
        try:
            found = requests.get(health, timeout=PROBE_SECONDS, headers=resolve_request_headers())
        except requests.exceptions.SSLError:
            return True
        except requests.exceptions.RequestException:
            return False
        return found.status_code not in PROXY_ALONE

    def lets_in(self) -> bool:
        """Whether it still takes the login that it is given; asked by reading the experiment."""
        if not self.uri.startswith(("http://", "https://")):
            return True
        try:
            self.client.get_experiment(self.experiment_id)
        except MlflowException as error:
            return error.get_http_status_code() not in NO_ENTRY
        except Exception:  # whatever else it is, it is not the login
            return True
        return True

    def check(self) -> None:
        """Find out before a training whether the store can be used.

        Raises:
            ConfigError: in one line, why not.
        """
        remedy = "start the server, or train with --tracking-uri '' to go without"
        if not self.is_up():
            raise ConfigError("the MLflow server does not answer", received=self.name, remedy=remedy)
        try:
            self.experiment_id  # noqa: B018 (opens the store)
        except Exception as error:  # MLflow raises many types, its server's and the database's among them
            text = (str(error).splitlines() or [type(error).__name__])[0].replace(self.uri, self.name)
            raise ConfigError(f"cannot log to MLflow: {text}", received=self.name, remedy=remedy) from error

    def create_run(self, *, key: str, name: str, tags: Mapping[str, str], start_time: int) -> str:
        """Make a run, or find the one that an interrupted attempt has made.

        Returns:
            Its id.
        """
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = self.client.create_run(
            self.experiment_id, start_time=start_time, tags={**tags, KEY_TAG: key}, run_name=name
        )
        return str(run.info.run_id)

    def send(self, record: Mapping[str, Any], *, run_id: str, payload: Path) -> None:
        """Deliver a record of a :class:`Spool`; doing it twice does no harm.

        Args:
            record: its `kind` (`metrics`, `params`, `tags`, `inputs`, `artifact`, `status` or `model`) says what the
                rest is.
            run_id: of the run it belongs to.
            payload: the record's file, where it has one.
        """
        kind = record["kind"]
        if kind == "metrics":
            # of one point in time, so that MLflow knows a repetition
            points = [Metric(key, value, record["time"], record["step"]) for key, value in record["values"].items()]
            for part in _parts(points):
                self.client.log_batch(run_id, metrics=part)
        elif kind == "params":
            known = self.client.get_run(run_id).data.params  # a resumed run has them, and they never change
            params = [Param(key, str(value)[:MAX_VALUE]) for key, value in record["values"].items() if key not in known]
            for part in _parts(params):
                self.client.log_batch(run_id, params=part)
        elif kind == "tags":
            for part in _parts([RunTag(key, str(value)) for key, value in record["values"].items()]):
                self.client.log_batch(run_id, tags=part)
        elif kind == "inputs":
            dataset = Dataset(**record["dataset"])
            self.client.log_inputs(
                run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])]
            )
        elif kind == "artifact":
            self._send_file(run_id, record["path"], payload)
        elif kind == "model":
            log_model(payload, client=self.client, run_id=run_id, name=record["name"])
        elif kind == "status":
            status, end = record["status"], record["time"]
            if status == "RUNNING":
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status=status, end_time=end)
        else:
            raise ConfigError("unknown kind of record for MLflow", received=kind)

    def _send_file(self, run_id: str, path: str, payload: Path) -> None:
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            named = Path(temporary) / name  # MLflow keeps the name of the file
            shutil.copyfile(payload, named)
            self.client.log_artifact(run_id, str(named), folder or None)

    def _artifact_location(self) -> str | None:
        if not self.uri.startswith(SQLITE_SCHEME):
            return None
        return (Path(self.uri.removeprefix(SQLITE_SCHEME)).resolve().parent / ARTIFACTS).as_uri()


def without_credentials(uri: str) -> str:
    """An address as it may be shown.

    Example:
        >>> without_credentials("https://me:secret@host:5000/mlflow"), without_credentials("sqlite:////data/mlruns.db")
        ('https://host:5000/mlflow', 'sqlite:////data/mlruns.db')
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def _parts(entities: Sequence[Any]) -> Iterator[Any]:
    for start in range(0, len(entities), BATCH):
        yield entities[start : start + BATCH]


def _make_store(path: Path) -> None:
    """MLflow takes seconds to make its tables; a process that ended meanwhile would leave a file that never opens."""
    with atomic_path(path) as temporary:
        MlflowClient(f"{SQLITE_SCHEME}{temporary}").search_experiments(max_results=1)
