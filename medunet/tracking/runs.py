"""Reading runs back from MLflow: which there are, how they differ, which is best, where they lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from medunet.errors import ConfigError, DataError
from medunet.metrics import lower_is_better

from .sender import UNREACHABLE, Delivery
from .server import SQLITE_SCHEME, Server
from .spool import Spool
from .state import PARENT_NAME, STATE_NAME, RunState

logger = logging.getLogger(__name__)

URI_VARIABLE = "MLFLOW_TRACKING_URI"

STORE_NAME = "mlruns.db"
"""The SQLite store beside the folders of the runs."""

RUNS_AT_ONCE = 1000
"""In one answer of the store."""

BEST_METRIC = "kept_val_mean_dice"
"""By what runs are ranked: of the weights that they left."""

BEST_EPOCH_METRIC = "best_val_mean_dice"
"""Of the best epoch, which runs kept that do not name the other one."""

OUTPUTS = ("eval", "*/eval", "*/*/eval", "*/*/*/eval")
"""Output folders of runs and folds below the folder that the user names, with one folder for several runs between."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as MLflow knows it.

    Args:
        run_id: MLflow's.
        name: for people.
        kind: 'training' (the parent) or 'fold' (its child).
        status: RUNNING, FINISHED, FAILED or KILLED.
        started: milliseconds since 1970.
        seconds: it took; None while it runs.
        params: by config id.
        metrics: the newest values.
        tags: all of them.
    """

    run_id: str
    name: str
    kind: str
    status: str
    started: int
    seconds: float | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def parent(self) -> str:
        """Run id of the training that a fold belongs to."""
        return self.tags.get(MLFLOW_PARENT_RUN_ID, "")

    @property
    def changed(self) -> tuple[str, ...]:
        """Parameters that are not as in the shipped bundle."""
        return tuple(filter(None, self.tags.get("medunet.changed", "").split(", ")))


def default_store(folder: str | os.PathLike[str] = "runs") -> str:
    """The store of trainings whose folders lie in `folder`: the environment's, or a SQLite file there."""
    found = os.environ.get(URI_VARIABLE)
    return found or f"{SQLITE_SCHEME}{(Path(folder) / STORE_NAME).resolve().as_posix()}"


def list_runs(uri: str, *, experiment_name: str = "medunet", folds: bool = False) -> list[TrackedRun]:
    """Trainings, newest first.

    Args:
        uri: of the tracking store.
        experiment_name: MLflow experiment.
        folds: also the folds, each after its training.

    Raises:
        ConfigError: no such store, it cannot be read, or it has no such experiment.
    """
    found = [_tracked(run) for run in _search(uri, experiment_name)]
    trainings = [run for run in found if run.kind == "training"]
    if not folds:
        return trainings
    children = sorted((run for run in found if run.kind == "fold"), key=lambda run: run.tags.get("medunet.fold", ""))
    return [run for one in trainings for run in (one, *(child for child in children if child.parent == one.run_id))]


def find_run(name: str, runs: Sequence[TrackedRun]) -> TrackedRun:
    """The run that a user means: a name, or the beginning of a run id.

    Raises:
        DataError: none or several.
    """
    found = [run for run in runs if run.name == name] or [run for run in runs if run.run_id.startswith(name)]
    if len(found) != 1:
        raise DataError(
            "no such run" if not found else "several runs have this name",
            received=name,
            expected=", ".join(dict.fromkeys(run.run_id[:8] if found else run.name for run in (found or runs)))
            or "none",
        )
    return found[0]


def best_run(runs: Sequence[TrackedRun], metric: str = BEST_METRIC) -> TrackedRun:
    """Return the run with the best value of a metric; see :func:`medunet.metrics.lower_is_better`.

    Raises:
        DataError: no run has the metric.
    """
    having = [run for run in runs if metric in run.metrics and run.metrics[metric] == run.metrics[metric]]
    if not having:
        known = sorted({name for run in runs for name in run.metrics if not name.startswith("system/")})
        raise DataError("no run has this metric", received=metric, expected=", ".join(known) or "none at all")
    sign = -1 if lower_is_better(metric) else 1
    return max(having, key=lambda run: sign * run.metrics[metric])


def differing(runs: Sequence[TrackedRun]) -> dict[str, list[str]]:
    """Parameters that are not the same in all runs: a value each, by id; '' where a run has none.

    Example:
        >>> runs = [TrackedRun(n, n, "fold", "", 0, None, {"epochs": n, "seed": "0"}, {}, {}) for n in "12"]
        >>> differing(runs)
        {'epochs': ['1', '2']}
    """
    names = sorted({name for run in runs for name in run.params})
    values = {name: [run.params.get(name, "") for run in runs] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def folders_of(run: TrackedRun, root: Path) -> list[Path]:
    """Folders of bundles on this machine that a run was trained in; of a training those of all folds.

    MLflow does not know where they are (nothing logged says so), but each folder knows its run.

    Args:
        run: as MLflow knows it.
        root: where to look, some levels deep.
    """
    found = []
    for pattern in OUTPUTS:
        for state_file in sorted(root.glob(f"{pattern}/{STATE_NAME}")):
            state = RunState.load(state_file)
            if state is not None and run.run_id in (state.run_id, state.parent):
                found.append(state_file.parent.parent)
    return found


def folder_of(run: TrackedRun, root: Path) -> Path | None:
    """The folder of a training (of several folds: the one above theirs), or of a fold; None where it is not found."""
    if run.kind != "training":
        return next(iter(folders_of(run, root)), None)
    for pattern in ("", "*/", "*/*/"):
        for state_file in sorted(root.glob(f"{pattern}{PARENT_NAME}")):
            state = RunState.load(state_file)
            if state is not None and state.run_id == run.run_id:
                return state_file.parent
    return None


def send_waiting(folder: Path, uri: str | None = None) -> tuple[int, int]:
    """Send what trainings below a folder could not send, and what the server did not take then.

    Args:
        folder: of a run, of a cross-validation, or of several of them.
        uri: of the store, where its address needs a password; by default the one that each run noted.

    Returns:
        How many records were sent, and how many still wait or were refused.
    """
    sent = left = 0
    for pattern in OUTPUTS:
        for place in sorted(folder.glob(f"{pattern}/tracking")):
            spool = Spool(place)
            spool.readmit()
            # what a cross-validation sums up belongs to the parent, and all its records say so
            state = RunState.load(place.parent / STATE_NAME) or RunState.load(place.parents[1] / PARENT_NAME)
            if not len(spool) or state is None:
                continue
            server = Server(uri or state.uri, experiment_name=state.experiment)
            delivery = Delivery(spool, server, place.parent / STATE_NAME)
            outcome = delivery.run()
            if outcome in UNREACHABLE:
                logger.warning("MLflow at %s %s", server.name, UNREACHABLE[outcome])
            sent, left = sent + delivery.delivered, left + len(spool) + len(spool.refused())
    return sent, left


def _search(uri: str, experiment_name: str) -> list[Run]:
    path = Path(uri.removeprefix(SQLITE_SCHEME))
    if uri.startswith(SQLITE_SCHEME) and not path.is_file():
        raise ConfigError(
            "no tracking store", file=path, remedy=f"train first, or give --tracking-uri, or set {URI_VARIABLE}"
        )
    server = Server(uri, experiment_name=experiment_name)
    if not server.is_up():
        raise ConfigError("the MLflow server does not answer", received=server.name)
    try:
        experiment = server.client.get_experiment_by_name(experiment_name)
        if experiment is None:
            raise ConfigError("the store has no such experiment", file=server.name, received=experiment_name)
        found: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = server.client.search_runs(
                [experiment.experiment_id], max_results=RUNS_AT_ONCE, page_token=token or None
            )
            found += page
            token = page.token or None
        return found
    except ConfigError:
        raise
    except Exception as error:  # MLflow raises many types
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the tracking store cannot be read: {text}", received=server.name) from error


def _tracked(run: Run) -> TrackedRun:
    info, data = run.info, run.data
    tags: Mapping[str, Any] = data.tags
    metrics: dict[str, float] = dict(data.metrics)
    if BEST_EPOCH_METRIC in metrics:
        metrics.setdefault(BEST_METRIC, metrics[BEST_EPOCH_METRIC])
    return TrackedRun(
        run_id=info.run_id,
        name=info.run_name,
        kind=tags.get("medunet.kind", ""),
        status=info.status,
        started=info.start_time,
        seconds=None if not info.end_time else (info.end_time - info.start_time) / 1000,
        params=dict(data.params),
        metrics=metrics,
        tags=dict(tags),
    )
