"""A search for better settings by Ray Tune: training runs with different values; bad ones end early."""

import json
import logging
import math
import platform
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from medunet.config import apply_all, parse_yaml, read_json, to_json
from medunet.errors import ConfigError, DataError
from medunet.files import check_target, claim, write_atomically
from medunet.io.extras import import_extra
from medunet.resources import WORKFLOWS
from medunet.runs import fit_bundle, train_run, write_run
from medunet.runtime import resolve_device
from medunet.tracking.server import Server, default_variables, now
from medunet.training import BEST_NAME, LAST_NAME, PREVIOUS_NAME, kept_entry, read_history
from medunet.trust import record_weights, require_trust

from .folds import share_of_fold
from .pool import join_cluster

METRIC = "val_mean_dice"
PREFIX = "trial_"
RESULTS_NAME = "tune.json"
ASKED_NAME = "search.json"  # the arguments, so that no other search continues this one
STATE = "ray"  # folder of Ray Tune's own state
MAX_FAILURES = 2  # lost processes per trial; it continues from its last checkpoint
TUNE_VARIABLES = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_WARN_THRESHOLD_S": "60"}
TUNE_VARIABLES["TUNE_GLOBAL_CHECKPOINT_S"] = "1"  # else a killed search cannot resume
REDUCTION = 3  # 1 of 3 trials continues at each rung of ASHA (Li et al. 2020, arXiv 1810.05934, has 4): few trials


@dataclass(frozen=True)
class Range:
    """The values of one config id that a search tries: a range, or choices."""

    key: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False  # uniform in the logarithm
    is_whole: bool = False  # whole numbers only
    choices: tuple[Any, ...] = ()

    @property
    def example(self) -> Any:
        """One of the values."""
        return self.choices[0] if self.choices else int(self.low or 0) if self.is_whole else self.low

    def to_tune(self, tune: Any) -> Any:
        """Return the domain of Ray Tune."""
        if self.choices:
            return tune.choice(list(self.choices))
        if self.is_whole:  # Tune's upper bound is exclusive
            return (tune.lograndint if self.is_log else tune.randint)(int(self.low or 0), int(self.high or 0) + 1)
        return (tune.loguniform if self.is_log else tune.uniform)(self.low, self.high)


def _parse_range(text: str) -> Range:
    key, equals, value = text.partition("=")
    if key and equals and "|" in value:
        return Range(key, choices=tuple(parse_yaml(word) for word in value.split("|")))
    low, _, rest = value.partition(":")
    high, *flags = rest.split(":")
    try:
        result = Range(key, float(low), float(high), is_log="log" in flags, is_whole="int" in flags)
        is_valid = bool(key) and float(low) < float(high) and not {*flags} - {"log", "int"}
        if not is_valid or (result.is_log and float(low) <= 0):
            raise ValueError
    except ValueError as error:
        expected = "KEY=LOW:HIGH[:log][:int] or KEY=A|B, LOW below HIGH, above 0 for log"
        raise ConfigError("--set-range must be a nonempty range", received=text, expected=expected) from error
    return result


def parse_ranges(texts: Iterable[str]) -> list[Range]:
    """Parse `KEY=LOW:HIGH`, with `:log` for orders of magnitude and `:int` for whole numbers, or `KEY=A|B|C`.

    Raises:
        ConfigError: no range, another form, or an empty range.
    """
    ranges = [_parse_range(text) for text in texts]
    if not ranges:
        raise ConfigError("a search needs --set-range", expected="such as learning_rate=1e-4:1e-2:log")
    return ranges


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
    """Search with Optuna's sampler, which follows good values, and ASHA, which ends bad training runs early.

    An interrupted search continues with `resume`: finished trials are kept, unfinished ones continue after their last
    completed epoch, and failed ones are retried. Ray Tune stores its state as pickles, which run code when they are
    loaded: resume only your own searches.

    Args:
        bundle: folder of the bundle to start from.
        data: data set in a layout that :func:`medunet.datasets.open_dataset` knows.
        output: folder of the search: one run per trial, and ``tune.json``.
        ranges: values to search, from :func:`parse_ranges`.
        trials: number of trials.
        seconds: time after which no trial starts or continues. Default: no limit.
        changes: values by config id, the same in all trials.
        presets: overlays of the bundle, applied before the values that follow from the data.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tracking_uri: MLflow's store, which gets one run with one child per trial; None or ``""`` disables tracking.
        resume: continue the search in ``output``, started with the same arguments; `seconds` are counted anew.
        trust: train a bundle that could run its own code.
        seed: seed of the sampler.

    Returns:
        The trials, the best first.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: an unknown key, impossible ranges or unusable data; Ray or Optuna is missing; the folder has a
            search but ``resume`` is False, or it has another search.
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
    with claim(output), default_variables(TUNE_VARIABLES):
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
        results = [_trial(output, result) for result in tuner.fit()]
        results.sort(key=lambda trial: -1.0 if trial.metric is None else trial.metric, reverse=True)
        rows = [{**asdict(trial), "run": trial.run.name} for trial in results]
        write_atomically(output / RESULTS_NAME, json.dumps(rows, indent=1))
    if tracking_uri:
        track_search(results, Server(tracking_uri), name=output.resolve().name, key=key)
    return results


def rungs(config: Mapping[str, Any], ranges: Sequence[Range]) -> dict[str, int]:
    """Return ASHA's first and last epoch: no trial ends before its second validation, or in its last epoch."""
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
        remedy = "add --resume, or choose another --output"
        raise DataError("the output folder contains a search", file=path.parent, remedy=remedy)
    begun = json.loads(path.read_text(encoding="utf-8"))
    as_read = json.loads(json.dumps(asked))  # tuples are lists
    if other := [name for name, value in as_read.items() if value != begun["asked"].get(name)]:
        raise ConfigError("the search was started with other arguments", file=path, received=", ".join(other))
    return str(begun["key"])


def _train(config: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Train a trial on a machine of the cluster, or continue it."""
    tune = import_extra("ray.tune", extra="ray", purpose="medunet tune")
    logging.getLogger("monai").setLevel(logging.ERROR)
    run = Path(job["output"]) / f"{PREFIX}{tune.get_context().get_trial_id()}"

    def report(entry: Mapping[str, Any]) -> None:
        if METRIC in entry.get("val_metrics", {}):
            tune.report({METRIC: entry["val_metrics"][METRIC], "epoch": entry["epoch"]})

    values = {**job["values"], **config}
    verdict = require_trust(Path(job["bundle"]))
    prepared = write_run(verdict, Path(job["data"]), run, values=values, presets=job["presets"], resume=False)
    for entry in read_history(run):  # what a resumed search has forgotten
        report(entry)
    train_run(prepared, resume=True, device=resolve_device(job["device"]), on_epoch=report)


def _trial(output: Path, result: Any) -> Trial:
    """Return a trial from Ray's result and the history of its run."""
    run = output / Path(result.path).name
    entries = read_history(run)
    if (run / "models" / BEST_NAME).is_file():  # a trial that ended early has not recorded its weights
        record_weights(run, exclude=(LAST_NAME, PREVIOUS_NAME), to_text=to_json)
    error = None if result.error is None else " ".join(str(result.error).split())[-300:]
    return Trial(run, dict(result.config), kept_entry(entries).get("val_metrics", {}).get(METRIC), len(entries), error)


def track_search(trials: Sequence[Trial], server: Server, *, name: str, key: str) -> None:
    """Log a run for the search and a child for every trial; with the same key, a second call adds to the same runs."""
    client, begun = server.client, now()
    parent = server.create_run(key=key, name=name, tags={"medunet.kind": "search"}, start_time=begun)
    for number, trial in enumerate(trials):
        run = trial.run.name
        tags = {"medunet.kind": "trial", MLFLOW_PARENT_RUN_ID: parent, "medunet.machine": platform.node()}
        child = server.create_run(key=f"{key} {run}", name=f"{name} {run}", tags=tags, start_time=begun + number)
        server.log_params(child, {id_.replace("::", "."): str(value) for id_, value in trial.values.items()})
        if trial.metric is not None:
            client.log_metric(child, f"best_{METRIC}", trial.metric, step=trial.epochs)
        client.set_terminated(child, "FINISHED" if trial.error is None else "FAILED")
    if trials and trials[0].metric is not None:
        client.log_metric(parent, f"best_{METRIC}", trials[0].metric)
    client.set_terminated(parent, "FINISHED")
