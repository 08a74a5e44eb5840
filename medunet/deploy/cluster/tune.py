"""A search for better settings: trainings with other values, the hopeless ones stopped early, by Ray Tune."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from medunet.bundle.read import WORKFLOWS
from medunet.config import apply_all, read_json, to_json
from medunet.errors import ConfigError, DataError
from medunet.files import check_target, claim, write_atomically
from medunet.io.extras import import_extra
from medunet.runs import fit_bundle, train_run, write_run
from medunet.runtime import resolve_device
from medunet.tracking.server import Server
from medunet.training import BEST_NAME, LAST_NAME, PREVIOUS_NAME, kept_entry, read_history
from medunet.trust import record_weights, require_trust

from .folds import share_of_fold
from .pool import join_cluster
from .ranges import Range

logger = logging.getLogger(__name__)

METRIC = "val_mean_dice"
PREFIX = "trial_"
MESSAGE_LENGTH = 300
RESULTS_NAME = "tune.json"
ASKED_NAME = "search.json"
"""What was asked for, so that nobody goes on with another search."""

STATE = "ray"
"""Folder of Ray Tune's own state."""

MAX_FAILURES = 2
"""Times that a trial may lose its process; it goes on from its last checkpoint."""

REDUCTION = 3
"""One trial in so many goes on at each rung of ASHA (Li et al. 2020, arXiv 1810.05934, has 4; 3 suits few trials)."""


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Args:
        run: its folder, a bundle.
        values: by config id, as they were chosen.
        metric: validation Dice of the epoch that it keeps; None where nothing was validated.
        epochs: trained.
        error: why it failed.
    """

    run: Path
    values: dict[str, Any]
    metric: float | None = None
    epochs: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Search:
    """What a search came to.

    Args:
        output: its folder.
        trials: the best first.
    """

    output: Path
    trials: tuple[Trial, ...] = field(default_factory=tuple)

    @property
    def best(self) -> Trial | None:
        """The trial with the best validation."""
        return next((trial for trial in self.trials if trial.metric is not None), None)


def tune_bundle(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    ranges: Sequence[Range],
    trials: int,
    seconds: float | None = None,
    changes: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    device: str = "auto",
    tracking_uri: str | None = None,
    resume: bool = False,
    trust: bool = False,
    seed: int = 0,
) -> Search:
    """Search with Optuna's sampler and ASHA: values follow what was good, and bad trainings end early.

    A search that was stopped or killed goes on by `resume`: finished trials are kept, unfinished ones go on after their
    last whole epoch, those that failed are tried again. Ray Tune keeps its state as pickles, which run code when they
    are loaded: resume searches of your own only.

    Args:
        bundle: as in :func:`medunet.runs.train_bundle`, as are data, changes, presets, device and trust.
        data: see bundle.
        output: gets a run a trial and ``tune.json``.
        ranges: what is chosen from.
        trials: how many.
        seconds: after which no more is begun or gone on with.
        changes: see bundle; the same in all trials.
        presets: see bundle.
        device: see bundle.
        tracking_uri: MLflow's store, which gets a run with a child a trial; None or '': none.
        resume: go on with the search in ``output``, begun with the same arguments; `seconds` count anew.
        trust: see bundle.
        seed: of the sampler.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: an unknown key, impossible ranges, data that cannot be used; Ray or Optuna is missing; a folder
            that holds a search when ``resume`` is False, or another one.
    """
    resolve_device(device)
    require_trust(bundle, trust=trust)
    _, fitted = fit_bundle(bundle, data, changes=changes)
    values = {**fitted, "tracking_uri": ""}
    configs = {name: read_json(bundle / "configs" / f"{name}.json") for name in WORKFLOWS}
    config = apply_all(configs, {**values, **{entry.key: entry.example for entry in ranges}})["train"]
    if trials < 1:
        raise ConfigError("impossible number of trials", received=trials, expected="1 or more")
    limits = rungs(config, ranges)
    asked = {
        "bundle": str(bundle.resolve()),
        "data": str(data.resolve()),
        "values": values,
        "presets": list(presets),
        "ranges": [asdict(entry) for entry in ranges],
        "trials": trials,
        "seconds": seconds,
        "seed": seed,
    }
    _check_asked(output, asked, resume=resume)
    ray = join_cluster()
    tune = import_extra("ray.tune", extra="ray", purpose="medunet tune")
    optuna = import_extra("ray.tune.search.optuna", extra="ray", purpose="medunet tune")
    schedulers = import_extra("ray.tune.schedulers", extra="ray", purpose="medunet tune")
    import_extra("optuna", extra="ray", purpose="medunet tune")
    job = {
        "bundle": str(bundle.resolve()),
        "data": str(data.resolve()),
        "output": str(output.resolve()),
        "values": values,
        "presets": list(presets),
        "device": device,
    }
    with claim(output), _quiet():
        check_target(output)
        key = _note_asked(output, asked)
        trainable = tune.with_resources(tune.with_parameters(_train, job=job), _resources(ray, trials))
        tuner = _begun(tune, output / STATE, trainable) or tune.Tuner(
            trainable,
            param_space={entry.key: entry.to_tune(tune) for entry in ranges},
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=trials,
                time_budget_s=seconds,
                search_alg=optuna.OptunaSearch(seed=seed),
                scheduler=schedulers.ASHAScheduler(
                    time_attr="epoch",
                    reduction_factor=REDUCTION,
                    **limits,
                ),
            ),
            run_config=tune.RunConfig(
                name=STATE,
                storage_path=str(output.resolve()),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=0,
            ),
        )
        errors = {str(result.path): result.error for result in tuner.fit()}
        files = sorted(output.glob(f"{PREFIX}*.json"))
        # those that are not Ray's were begun in the last second before a kill, and others took their places
        found = [_trial(file, errors) for file in files if any(_number(file) in path for path in errors)]
        found.sort(key=lambda trial: -1.0 if trial.metric is None else trial.metric, reverse=True)
        search = Search(output, tuple(found))
        rows = [{**asdict(trial), "run": trial.run.name} for trial in search.trials]
        write_atomically(output / RESULTS_NAME, json.dumps(rows, indent=1))
    if tracking_uri:
        track_search(search, Server(tracking_uri), key=key)
    return search


def rungs(config: Mapping[str, Any], ranges: Sequence[Range]) -> dict[str, int]:
    """ASHA's first and last epoch: no trial is judged before it can have been validated twice, or cut at the last.

    Args:
        config: the training's.
        ranges: what is chosen from; `epochs` and `val_interval` may be among it.

    Raises:
        ConfigError: choices of these that are not numbers.

    Example:
        >>> rungs({"epochs": 100, "val_interval": 5}, [])
        {'max_t': 101, 'grace_period': 10}
    """
    largest = {entry.key: entry.largest for entry in ranges if entry.key in ("epochs", "val_interval")}
    try:
        epochs, interval = (math.ceil(largest.get(key, config[key])) for key in ("epochs", "val_interval"))
    except TypeError as error:
        raise ConfigError("epochs are counted in numbers", received=largest) from error
    # who comes to the end ends by itself
    return {"max_t": epochs + 1, "grace_period": min(epochs, 2 * interval)}


def _check_asked(output: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse to begin where a search lies, and to go on with another one."""
    path = output / ASKED_NAME
    if not path.is_file():
        return
    if not resume:
        raise DataError(
            "the output folder holds a search", file=output, remedy="go on with --resume, or give another --output"
        )
    begun = json.loads(path.read_text(encoding="utf-8"))
    if other := [name for name, value in _as_json(asked).items() if value != begun["asked"].get(name)]:
        raise ConfigError(
            "the search was begun with other arguments",
            file=path,
            received=", ".join(other),
            remedy="repeat those of then, or give another --output",
        )


def _note_asked(output: Path, asked: Mapping[str, Any]) -> str:
    """Note what was asked for when a search begins; gives the key that it has in MLflow."""
    path = output / ASKED_NAME
    if not path.is_file():
        begun = {"key": secrets.token_hex(16), "asked": _as_json(asked)}
        write_atomically(path, json.dumps(begun, indent=1))
    return str(json.loads(path.read_text(encoding="utf-8"))["key"])


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file: tuples are lists."""
    return dict(json.loads(json.dumps(values)))


def _begun(tune: Any, state: Path, trainable: Any) -> Any:
    """The search that goes on; None where Ray has not noted a trial yet."""
    if not any(state.glob("experiment_state*.json")) or not tune.Tuner.can_restore(str(state.resolve())):
        return None
    return tune.Tuner.restore(str(state.resolve()), trainable, resume_errored=True)


def _train(config: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """A trial, on a machine of the cluster; started again it goes on."""
    tune = import_extra("ray.tune", extra="ray", purpose="medunet tune")
    logging.getLogger("monai").setLevel(logging.ERROR)
    run = Path(job["output"]) / f"{PREFIX}{tune.get_context().get_trial_id()}"
    write_atomically(run.with_suffix(".json"), json.dumps(dict(config)))
    values = {**job["values"], **config}

    def report(entry: Mapping[str, Any]) -> None:
        if METRIC in entry.get("val_metrics", {}):
            tune.report({METRIC: entry["val_metrics"][METRIC], "epoch": entry["epoch"]})

    bundle, data = Path(job["bundle"]), Path(job["data"])
    prepared = write_run(bundle, data, run, values=values, presets=job["presets"], resume=False)
    for entry in read_history(run):  # what a search that goes on has forgotten
        report(entry)
    train_run(prepared, resume=True, device=resolve_device(job["device"]), on_epoch=report)


def _resources(ray: Any, trials: int) -> dict[str, float]:
    share = share_of_fold(ray, trials)
    return {"cpu": share["num_cpus"], "gpu": share.get("num_gpus", 0)}


def _number(file: Path) -> str:
    """Ray's name of a trial."""
    return file.stem.removeprefix(PREFIX)


def _trial(file: Path, errors: Mapping[str, Exception | None]) -> Trial:
    """What a trial has left in the output folder; errors by Ray's folders."""
    run = file.with_suffix("")
    entries = read_history(run)
    values = json.loads(file.read_text())
    if (run / "models" / BEST_NAME).is_file():  # a trial that was ended early had no time for it
        record_weights(run, exclude=(LAST_NAME, PREVIOUS_NAME), to_text=to_json)
    error = next((error for path, error in errors.items() if _number(file) in path and error is not None), None)
    text = None if error is None else " ".join(str(error).split())[-MESSAGE_LENGTH:]
    return Trial(run, values, kept_entry(entries).get("val_metrics", {}).get(METRIC), len(entries), text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Tune's own log files and banners; its state is kept second by second, for who goes on after a kill."""
    wanted = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_WARN_THRESHOLD_S": "60"}
    wanted["TUNE_GLOBAL_CHECKPOINT_S"] = "1"
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def track_search(search: Search, server: Server, *, key: str) -> None:
    """Log a run for the search and a child for every trial: its values and its best Dice; going on adds to them.

    Args:
        search: what it came to.
        server: of MLflow.
        key: of the search, the same however often it goes on.
    """
    name, now = search.output.resolve().name, int(1000 * time.time())
    client = server.client
    parent = server.create_run(key=key, name=name, tags={"medunet.kind": "search"}, start_time=now)
    for number, trial in enumerate(search.trials):
        tags = {"medunet.kind": "trial", MLFLOW_PARENT_RUN_ID: parent, "medunet.machine": platform.node()}
        child = server.create_run(
            key=f"{key} {trial.run.name}", name=f"{name} {trial.run.name}", tags=tags, start_time=now + number
        )
        for id_, value in trial.values.items():
            client.log_param(child, id_.replace("::", "."), value)
        if trial.metric is not None:
            client.log_metric(child, f"best_{METRIC}", trial.metric, step=trial.epochs)
        client.set_terminated(child, "FINISHED" if trial.error is None else "FAILED")
    if search.best is not None and search.best.metric is not None:
        client.log_metric(parent, f"best_{METRIC}", search.best.metric)
    client.set_terminated(parent, "FINISHED")
