"""An MLflow tracking store: opening it, and sending to it. Sending the same thing twice does no harm."""

import functools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils import chunk_list
from monai.handlers import MLFlowHandler
from requests import RequestException

from medunet.errors import ConfigError, MedunetError
from medunet.files import atomic_path

URI_VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE_SCHEME = "sqlite:///"
KEY_TAG = "medunet.key"  # identifies a run that was created but whose id was not recorded
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # per request of MLflow's REST API
MAX_VALUE = 6000  # characters of a parameter

SILENT = "does not answer"
PROBE_SECONDS = 5  # a server that is silent for so long counts as down
PATIENT_SECONDS = 60  # per request outside of the training loop, such as the upload of a model


class Server:
    """An MLflow store: ``sqlite:///FILE`` or the address of a server. New runs belong to the experiment.

    MONAI's MLFlowHandler opens the store and finds or creates the experiment, upon first use.
    """

    def __init__(self, uri: str, *, experiment_name: str = "medunet") -> None:
        self.uri = uri
        self.experiment_name = experiment_name

    @property
    def name(self) -> str:
        """The address without user and password."""
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else self.uri

    @functools.cached_property
    def _handler(self) -> MLFlowHandler:
        path = Path(self.uri.removeprefix(SQLITE_SCHEME))
        if self.uri.startswith(SQLITE_SCHEME) and not path.exists():
            create_store(path)
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        with variables({URI_VARIABLE: None}):  # MONAI prefers it to the argument
            return MLFlowHandler(tracking_uri=self.uri, experiment_name=self.experiment_name)

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; a missing SQLite store is created."""
        return self._handler.client

    @functools.cached_property
    def experiment_id(self) -> str:
        """Id of the experiment, which is created if it is missing."""
        self._handler._set_experiment()
        return str(self._handler.experiment.experiment_id)

    def probe(self) -> None:
        """Ask for the experiment, with a short timeout; raise if the store does not answer or rejects the login."""
        with limits(PROBE_SECONDS):
            self.client.get_experiment_by_name(self.experiment_name)

    @contextmanager
    def required(self, *, purpose: str, remedy: str) -> Iterator[None]:
        """Probe the store, and turn every error within the block into a one-line ConfigError."""
        try:
            self.probe()
            with limits(PATIENT_SECONDS):
                yield
        except MedunetError:
            raise
        except Exception as error:  # MLflow raises many types, its server's and its database's among them
            text = self.describe(error)
            cause = f"the MLflow server {SILENT}" if text == SILENT else f"{purpose}: {text}"
            raise ConfigError(cause, received=self.name, remedy=remedy) from error

    def describe(self, error: BaseException) -> str:
        """Return an error as one line, without user and password."""
        if isinstance(error.__cause__ or error.__context__, RequestException):
            return SILENT
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return line.replace(self.uri, self.name)[:300]

    def create_run(self, *, key: str, name: str, tags: Mapping[str, str], start_time: int) -> str:
        """Create a run, or find the one that an interrupted attempt has created; return its id."""
        for run in self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1):
            return str(run.info.run_id)
        tags = {**tags, KEY_TAG: key}
        run = self.client.create_run(self.experiment_id, start_time=start_time, tags=tags, run_name=name)
        return str(run.info.run_id)

    def log_metrics(self, run_id: str, points: Sequence[Iterable[Any]]) -> None:
        """Log points ``(key, value, milliseconds since 1970, step)``."""
        for part in chunk_list(points, MAX_METRICS):
            self.client.log_batch(run_id, metrics=[Metric(*point) for point in part])

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log the parameters that the run does not have yet; MLflow never changes one."""
        known = self.client.get_run(run_id).data.params
        new = [Param(key, value[:MAX_VALUE]) for key, value in params.items() if key not in known]
        for part in chunk_list(new, MAX_PARAMS):
            self.client.log_batch(run_id, params=part)

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for part in chunk_list([RunTag(*pair) for pair in tags.items()], MAX_TAGS):
            self.client.log_batch(run_id, tags=part)

    def log_datasets(self, run_id: str, datasets: Iterable[Mapping[str, Any]]) -> None:
        """Log records of :func:`medunet.tracking.content.dataset_record`."""
        for entry in datasets:
            tags = [InputTag("mlflow.data.context", entry["context"])]
            self.client.log_inputs(run_id, [DatasetInput(Dataset(**entry["dataset"]), tags)])

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        """Set RUNNING, or end the run with FINISHED, FAILED or KILLED."""
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status=status, end_time=end_time)


def create_store(path: Path) -> None:
    """Create an SQLite store. MLflow takes seconds; a process that ends meanwhile would leave an unusable file."""
    with atomic_path(path) as temporary:
        MlflowClient(f"{SQLITE_SCHEME}{temporary}").search_experiments(max_results=1)


@contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables within a block; None removes one."""

    def assign(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    before = {name: os.environ.get(name) for name in values}
    try:
        assign(values)
        yield
    finally:
        assign(before)


def default_variables(values: Mapping[str, str]) -> AbstractContextManager[None]:
    """Set environment variables within a block, unless the user has set them."""
    return variables({name: value for name, value in values.items() if name not in os.environ})


def limits(seconds: int) -> AbstractContextManager[None]:
    """Limit each request of MLflow to its server, without retries, and hide its progress bars."""
    values = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    return variables({**values, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"})


def now() -> int:
    """Return milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)
