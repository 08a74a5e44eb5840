"""Reading runs back from MLflow: listing, comparing, finding their folders; and sending what MLflow lacks."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from medunet.errors import ConfigError, DataError
from medunet.metrics import lower_is_better

from .record import PARENT_NAME, RECORD_NAME, Delivery, RunRecord, points
from .server import SQLITE_SCHEME, URI_VARIABLE, Server, now

logger = logging.getLogger(__name__)

STORE_NAME = "mlruns.db"  # the SQLite store beside the folders of the runs
MAX_RUNS = 50_000  # MLflow's limit for one answer
BEST_METRIC = "kept_val_mean_dice"  # ranks runs: of the weights that they kept
BEST_EPOCH_METRIC = "best_val_mean_dice"  # of the best epoch, for runs without BEST_METRIC


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow."""

    run_id: str
    name: str
    kind: str  # "training" (the parent) or "fold" (its child)
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    started: int  # milliseconds since 1970
    seconds: float | None  # None while it runs
    params: dict[str, str]
    metrics: dict[str, float]  # the newest values
    tags: dict[str, str]

    @property
    def parent(self) -> str:
        """Run id of the training run to which a fold belongs."""
        return self.tags.get(MLFLOW_PARENT_RUN_ID, "")

    @property
    def changed(self) -> tuple[str, ...]:
        """Parameters that differ from the shipped bundle."""
        return tuple(filter(None, self.tags.get("medunet.changed", "").split(", ")))


def default_store(folder: str | os.PathLike[str] = "runs") -> str:
    """Return the store of runs below `folder`: MLFLOW_TRACKING_URI, or a SQLite file in it."""
    return os.environ.get(URI_VARIABLE) or f"{SQLITE_SCHEME}{(Path(folder) / STORE_NAME).resolve().as_posix()}"


def list_runs(uri: str, *, experiment_name: str = "medunet", folds: bool = False) -> list[TrackedRun]:
    """Return training runs, newest first.

    Args:
        uri: the tracking store.
        experiment_name: MLflow experiment.
        folds: return the folds, too, each after its training run.

    Raises:
        ConfigError: the store is missing or cannot be read, or it has no such experiment.
    """
    path, remedy = Path(uri.removeprefix(SQLITE_SCHEME)), f"train first, pass --tracking-uri, or set {URI_VARIABLE}"
    if uri.startswith(SQLITE_SCHEME) and not path.is_file():
        raise ConfigError("tracking store is missing", file=path, remedy=remedy)
    server = Server(uri, experiment_name=experiment_name)
    with server.required(purpose="the tracking store cannot be read", remedy=remedy):
        experiment = server.client.get_experiment_by_name(experiment_name)
        if experiment is None:
            raise ConfigError("the store has no such experiment", file=server.name, received=experiment_name)
        runs = [_tracked(r) for r in server.client.search_runs([experiment.experiment_id], max_results=MAX_RUNS)]
    trainings = [run for run in runs if run.kind == "training"]
    if not folds:
        return trainings
    children = sorted((run for run in runs if run.kind == "fold"), key=lambda run: run.tags.get("medunet.fold", ""))
    return [run for one in trainings for run in (one, *(child for child in children if child.parent == one.run_id))]


def track_values(uri: str, values: Mapping[str, float], *, name: str, kind: str) -> None:
    """Log values to a new run of a kind other than training; an unusable store is a ConfigError."""
    server = Server(uri)
    with server.required(purpose="the values cannot be logged", remedy="pass another --tracking-uri"):
        run = server.create_run(key=uuid4().hex, name=name, tags={"medunet.kind": kind}, start_time=now())
        server.log_metrics(run, points(values, time=now(), step=0))
        server.set_status(run, "FINISHED", now())


def find_run(name: str, runs: Sequence[TrackedRun]) -> TrackedRun:
    """Return the run with a name, or whose id begins with it; raise a DataError unless there is exactly one."""
    matches = [run for run in runs if run.name == name] or [run for run in runs if run.run_id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    known = dict.fromkeys(run.run_id[:8] if matches else run.name for run in matches or runs)
    cause = "several runs have this name" if matches else "no such run"
    raise DataError(cause, received=name, expected=", ".join(known) or "none")


def best_run(runs: Sequence[TrackedRun], metric: str = BEST_METRIC) -> TrackedRun:
    """Return the run with the best value of a metric (lower for losses, distances and times), or raise a DataError."""
    candidates = [run for run in runs if metric in run.metrics and run.metrics[metric] == run.metrics[metric]]
    if not candidates:
        known = sorted({name for run in runs for name in run.metrics if not name.startswith("system/")})
        raise DataError("no run has this metric", received=metric, expected=", ".join(known) or "none")
    sign = -1 if lower_is_better(metric) else 1
    return max(candidates, key=lambda run: sign * run.metrics[metric])


def differing(runs: Sequence[TrackedRun]) -> dict[str, list[str]]:
    """Return the parameters that differ between runs: one value per run, by id, or '' if a run has none."""
    names = sorted({name for run in runs for name in run.params})
    values = {name: [run.params.get(name, "") for run in runs] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def folder_of(run: TrackedRun, root: Path) -> Path | None:
    """Return the folder of a run below `root`, or None; of several folds, the folder that contains theirs."""
    for file in _records(root):  # each folder knows its run; MLflow gets no path
        record = RunRecord.load(file)
        if record is not None and record.run_id == run.run_id:
            return file.parent if file.name == PARENT_NAME else file.parents[1]
    return None


def sync_runs(folder: Path, uri: str | None = None) -> tuple[int, int]:
    """Send what MLflow does not have of the runs in a folder, from their histories and files.

    Args:
        folder: a run, a cross-validation, or a folder of several of them.
        uri: the store, if its address needs a password. Default: the store in the record of each run.

    Returns:
        How many runs were sent, and how many could not be.
    """
    results: list[bool] = []
    for file in _records(folder):
        record = RunRecord.load(file)
        if record is None or record.is_synced:
            continue
        server = Server(uri or record.uri, experiment_name=record.experiment)
        try:
            server.probe()
            results.append(Delivery(server, file).run())
        except Exception as error:  # MLflow raises many types
            results.append(False)
            text = "%s could not be sent to MLflow at %s (%s)"
            logger.warning(text, file.parent, server.name, server.describe(error))
    return results.count(True), results.count(False)


def _records(root: Path) -> Iterator[Path]:
    """Yield the records of training runs and their folds, up to three levels below a folder."""
    for depth in range(4):
        yield from sorted(root.glob("*/" * depth + PARENT_NAME))
        yield from sorted(root.glob("*/" * depth + f"eval/{RECORD_NAME}"))


def _tracked(run: Run) -> TrackedRun:
    info, data = run.info, run.data
    metrics: dict[str, float] = dict(data.metrics)
    if BEST_EPOCH_METRIC in metrics:
        metrics.setdefault(BEST_METRIC, metrics[BEST_EPOCH_METRIC])
    return TrackedRun(
        run_id=info.run_id,
        name=info.run_name,
        kind=data.tags.get("medunet.kind", ""),
        status=info.status,
        started=info.start_time,
        seconds=None if not info.end_time else (info.end_time - info.start_time) / 1000,
        params=dict(data.params),
        metrics=metrics,
        tags=dict(data.tags),
    )
