"""A search for better settings by Ray Tune: training runs with other values, of which bad ones end early."""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from medunet.config import apply_all, read_json, to_json
from medunet.errors import ConfigError, DataError
from medunet.files import check_target, claim, write_atomically
from medunet.io.extras import import_extra
from medunet.resources import WORKFLOWS
from medunet.runs import fit_bundle, train_run, write_run
from medunet.runtime import resolve_device
from medunet.tracking.server import Server
from medunet.training import BEST_NAME, LAST_NAME, PREVIOUS_NAME, kept_entry, read_history
from medunet.trust import record_weights, require_trust

from .folds import share_of_fold
from .pool import join_cluster
from .ranges import Range

METRIC = "val_mean_dice"
PREFIX = "trial_"
MESSAGE_LENGTH = 300
RESULTS_NAME = "tune.json"
ASKED_NAME = "search.json"  # the arguments, so that no other search continues this one
STATE = "ray"  # folder of Ray Tune's own state
MAX_FAILURES = 2  # processes that a trial may lose; it continues from its last checkpoint
REDUCTION = 3  # 1 of 3 trials continues at each rung of ASHA (Li et al. 2020, arXiv 1810.05934, has 4): few trials


@dataclass(frozen=True)
class Trial:
    """One training run of a search."""

    run: Path  # its folder, a bundle
    values: dict[str, Any]  # by config id
    metric: float | None = None  # validation Dice of the epoch whose weights are kept; None: nothing was validated
    epochs: int = 0  # trained
    error: str | None = None


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
) -> list[Trial]:
    """Search with Optuna's sampler and ASHA: values follow what was good, and bad training runs end early.

    An interrupted search continues with `resume`: finished trials are kept, unfinished ones continue after their last
    completed epoch, failed ones are retried. Ray Tune stores its state as pickles, which run code when they are loaded:
    resume only your own searches.

    Args:
        bundle: folder of the bundle to start from.
        data: data set in a layout that :func:`medunet.datasets.open_dataset` knows.
        output: folder of the search: one run per trial, and ``tune.json``.
        ranges: values to search.
        trials: number of trials.
        seconds: time after which no trial starts or continues.
        changes: values by config id, the same in all trials.
        presets: overlays of the bundle, under what follows from the data.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tracking_uri: MLflow's store, which gets one run with one child per trial; None or '': none.
        resume: continue the search in ``output``, begun with the same arguments; `seconds` count anew.
        trust: train a bundle that could run code of its own.
        seed: of the sampler.

    Returns:
        The trials, the best first.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: an unknown key, impossible ranges, data that cannot be used; Ray or Optuna is missing; a folder
            with a search if ``resume`` is False, or with another one.
    """
    resolve_device(device)
    require_trust(bundle, trust=trust)
    _, fitted = fit_bundle(bundle, data, changes=changes)
    values = {**fitted, "tracking_uri": ""}
    configs = {name: read_json(bundle / "configs" / f"{name}.json") for name in WORKFLOWS}
    config = apply_all(configs, {**values, **{entry.key: entry.example for entry in ranges}})["train"]
    if trials < 1:
        raise ConfigError("trials must be 1 or more", received=trials)
    job = {"bundle": str(bundle.resolve()), "data": str(data.resolve()), "values": values, "presets": list(presets)}
    budget = {"ranges": [asdict(entry) for entry in ranges], "trials": trials, "seconds": seconds, "seed": seed}
    limits = rungs(config, ranges)
    key = _search_key(output / ASKED_NAME, job | budget, resume=resume)
    ray = join_cluster()
    tune = import_extra("ray.tune", extra="ray", purpose="medunet tune")
    optuna = import_extra("ray.tune.search.optuna", extra="ray", purpose="medunet tune")
    import_extra("optuna", extra="ray", purpose="medunet tune")
    with claim(output), _quiet():
        check_target(output)
        write_atomically(output / ASKED_NAME, json.dumps({"key": key, "asked": job | budget}, indent=1))
        share = share_of_fold(ray, trials)
        trainable = tune.with_parameters(_train, job=job | {"output": str(output.resolve()), "device": device})
        trainable = tune.with_resources(trainable, {"cpu": share["num_cpus"], "gpu": share.get("num_gpus", 0)})
        state = (output / STATE).resolve()
        if any(state.glob("experiment_state*.json")) and tune.Tuner.can_restore(str(state)):
            tuner = tune.Tuner.restore(str(state), trainable, resume_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={entry.key: entry.to_tune(tune) for entry in ranges},
                tune_config=tune.TuneConfig(
                    metric=METRIC,
                    mode="max",
                    num_samples=trials,
                    time_budget_s=seconds,
                    search_alg=optuna.OptunaSearch(seed=seed),
                    scheduler=tune.schedulers.ASHAScheduler(time_attr="epoch", reduction_factor=REDUCTION, **limits),
                    trial_dirname_creator=lambda trial: f"{PREFIX}{trial.trial_id}",
                ),
                run_config=tune.RunConfig(
                    name=STATE,
                    storage_path=str(state.parent),
                    failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                    verbose=0,
                ),
            )
        found = [_trial(output, result) for result in tuner.fit()]
        found.sort(key=lambda trial: -1.0 if trial.metric is None else trial.metric, reverse=True)
        rows = [{**asdict(trial), "run": trial.run.name} for trial in found]
        write_atomically(output / RESULTS_NAME, json.dumps(rows, indent=1))
    if tracking_uri:
        track_search(found, Server(tracking_uri), name=output.resolve().name, key=key)
    return found


def rungs(config: Mapping[str, Any], ranges: Sequence[Range]) -> dict[str, int]:
    """Return ASHA's first and last epoch: no trial ends before its second validation, or in its last epoch.

    `config` is the training's; the ranges may be of `epochs` and `val_interval`.

    Example:
        >>> rungs({"epochs": 100, "val_interval": 5}, [])
        {'max_t': 101, 'grace_period': 10}
    """
    values = {entry.key: entry.choices or [entry.high] for entry in ranges}
    try:
        epochs, interval = (math.ceil(max(values.get(key, [config[key]]))) for key in ("epochs", "val_interval"))
    except TypeError as error:
        raise ConfigError("epochs and val_interval must be numbers", received=values) from error
    return {"max_t": epochs + 1, "grace_period": min(epochs, 2 * interval)}


def _search_key(path: Path, asked: Mapping[str, Any], *, resume: bool) -> str:
    """Return a search's key in MLflow; reject a new search in the folder of another, and one with other arguments."""
    if not path.is_file():
        return secrets.token_hex(16)
    if not resume:
        remedy = "add --resume to continue it, or choose another --output"
        raise DataError("the output folder holds a search", file=path.parent, remedy=remedy)
    begun = json.loads(path.read_text(encoding="utf-8"))
    as_read = json.loads(json.dumps(asked))  # tuples are lists
    if other := [name for name, value in as_read.items() if value != begun["asked"].get(name)]:
        remedy = "use the arguments of the first call, or choose another --output"
        cause = "the search was begun with other arguments"
        raise ConfigError(cause, file=path, received=", ".join(other), remedy=remedy)
    return str(begun["key"])


def _train(config: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Train a trial on a machine of the cluster; started again it continues."""
    tune = import_extra("ray.tune", extra="ray", purpose="medunet tune")
    logging.getLogger("monai").setLevel(logging.ERROR)
    run = Path(job["output"]) / f"{PREFIX}{tune.get_context().get_trial_id()}"

    def report(entry: Mapping[str, Any]) -> None:
        if METRIC in entry.get("val_metrics", {}):
            tune.report({METRIC: entry["val_metrics"][METRIC], "epoch": entry["epoch"]})

    values = {**job["values"], **config}
    judged, data = require_trust(Path(job["bundle"])), Path(job["data"])
    prepared = write_run(judged, data, run, values=values, presets=job["presets"], resume=False)
    for entry in read_history(run):  # what a resumed search has forgotten
        report(entry)
    train_run(prepared, resume=True, device=resolve_device(job["device"]), on_epoch=report)


def _trial(output: Path, result: Any) -> Trial:
    """Return a trial from Ray's result and the history of its run."""
    run = output / Path(result.path).name
    entries = read_history(run)
    if (run / "models" / BEST_NAME).is_file():  # a trial that ended early has not recorded its weights
        record_weights(run, exclude=(LAST_NAME, PREVIOUS_NAME), to_text=to_json)
    error = None if result.error is None else " ".join(str(result.error).split())[-MESSAGE_LENGTH:]
    return Trial(run, dict(result.config), kept_entry(entries).get("val_metrics", {}).get(METRIC), len(entries), error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable Tune's own log files and banners, and store its state every second, for a search that is killed."""
    values = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_WARN_THRESHOLD_S": "60"}
    values["TUNE_GLOBAL_CHECKPOINT_S"] = "1"
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def track_search(trials: Sequence[Trial], server: Server, *, name: str, key: str) -> None:
    """Log a run for the search and a child for every trial: its values and its best Dice.

    The key is the same whenever the search is resumed, so that a second call adds to the same runs.
    """
    client, now = server.client, int(1000 * time.time())
    parent = server.create_run(key=key, name=name, tags={"medunet.kind": "search"}, start_time=now)
    for number, trial in enumerate(trials):
        run = trial.run.name
        tags = {"medunet.kind": "trial", MLFLOW_PARENT_RUN_ID: parent, "medunet.machine": platform.node()}
        child = server.create_run(key=f"{key} {run}", name=f"{name} {run}", tags=tags, start_time=now + number)
        for id_, value in trial.values.items():
            client.log_param(child, id_.replace("::", "."), value)
        if trial.metric is not None:
            client.log_metric(child, f"best_{METRIC}", trial.metric, step=trial.epochs)
        client.set_terminated(child, "FINISHED" if trial.error is None else "FAILED")
    if trials and trials[0].metric is not None:
        client.log_metric(parent, f"best_{METRIC}", trials[0].metric)
    client.set_terminated(parent, "FINISHED")
