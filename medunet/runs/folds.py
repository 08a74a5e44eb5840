"""Cross-validation: train folds, predict each case by the fold that held it out, join the folds into an ensemble."""

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunet.config import read_json
from medunet.datasets import SegmentationDataset, datalist, open_as
from medunet.errors import ConfigError, DataError, MedunetError, find_cause
from medunet.files import check_target, claim, reject_other_files
from medunet.metrics import CSV_NAME, Summary
from medunet.prediction import ClassRule, Pair, Predictor, choose_region_rules, choose_rules
from medunet.runs.ensemble import write_ensemble
from medunet.runs.evaluate import OUT_OF_FOLD, class_values, measure, predict_items, region_values
from medunet.runs.objects import ObjectCase, fit_objects, predict_maps
from medunet.runs.split import split_options
from medunet.runs.train import PreparedRun, TrainingResult, fit_bundle, open_run, train_run, write_run
from medunet.runtime import load_checkpoint, resolve_device
from medunet.tracking import track_cross_validation
from medunet.training import LAST_NAME
from medunet.trust import require_trust

logger = logging.getLogger(__name__)

POSTPROCESSED = f"{OUT_OF_FOLD}_postprocessed"  # folder with the metrics of the same predictions after postprocessing
OBJECT_CASES = 10  # held-out cases of each fold on which the values of `objects` are chosen
PREDICTIONS = "predictions"  # folder in the run of a fold

Status = Literal["trained", "there already", "failed", "stopped"]

# trains runs (by fold, device, tracking URI) and yields their outcomes as they become known, in any order
FoldTrainer = Callable[[Mapping[int, PreparedRun], str, "str | None"], Iterable["FoldOutcome"]]


@dataclass(frozen=True)
class FoldOutcome:
    """The outcome of one fold."""

    fold: int
    run: Path  # folder of its run
    status: Status  # 'there already' if an earlier call trained it
    seconds: float = 0.0  # duration of training in this call
    error: str | None = None  # why it failed

    @property
    def is_trained(self) -> bool:
        """Whether there is a finished run."""
        return self.status in ("trained", "there already")


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation."""

    output: Path  # its folder, a bundle if at least one fold is trained
    folds: tuple[FoldOutcome, ...]  # of the requested folds, in order; after Ctrl-C up to the interrupted one
    summary: Summary | None = None  # out-of-fold metrics; None if no case could be evaluated
    rules: tuple[ClassRule, ...] = ()  # the postprocessing rule that was tried for each class
    postprocessed: Summary | None = None  # out-of-fold metrics after postprocessing; None if no rule is kept
    failed_cases: dict[str, str] = field(default_factory=dict)  # reason by name of each case without a prediction
    is_interrupted: bool = False  # whether Ctrl-C ended it

    @property
    def is_whole(self) -> bool:
        """Whether every requested fold is trained and every case is predicted."""
        trained = all(outcome.is_trained for outcome in self.folds)
        return trained and not (self.failed_cases or self.is_interrupted)


def train_folds(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    folds: Sequence[int] | None = None,
    changes: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    device: str = "auto",
    tracking_uri: str | None = None,
    trust: bool = False,
    trainer: FoldTrainer | None = None,
    skip_bad: bool = False,
    split: Path | None = None,
    group_by: str | None = None,
) -> CrossValidation:
    """Train folds into `output/fold_K` and make `output` the bundle of their ensemble.

    A repeated call with the same options keeps finished folds, resumes an unfinished one and retries a failed one. If a
    fold fails, the others continue. Each case is then predicted by the run that did not train on it
    (`fold_K/predictions`) and evaluated (`out_of_fold/metrics.csv` and `.json`), and postprocessing is chosen.

    Args:
        bundle: folder of the bundle to start from.
        data: labelled data set.
        output: folder of the cross-validation.
        folds: numbers of the folds, below the bundle's value `folds`; None trains all.
        changes: values by config id; they override those that follow from the data.
        presets: names of overlays of the bundle; the values from the data override them.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tracking_uri: MLflow's tracking URI for this call; `""` disables tracking, None uses the bundle's.
        trust: approve a bundle that could run its own code.
        trainer: how the folds are trained; None trains one after the other in this process.
        skip_bad: leave out unusable cases, which are an error otherwise.
        split: file with the cases of each fold or the group of each case, as for `train_bundle`.
        group_by: regular expression; its first group in a case's name is the patient, which folds do not divide.

    Returns:
        The outcome of each fold, the out-of-fold metrics and the postprocessing.

    Raises:
        SecurityError: The bundle is not trusted.
        MedunetError: The data set, an option or the device cannot be used. The output folder contains a single run, or
            runs of another configuration.
    """
    resolve_device(device)  # an error before anything is written
    verdict = require_trust(bundle, trust=trust)
    if (output / "models" / LAST_NAME).is_file():
        raise DataError("the output folder contains a single run", file=output, remedy="pass another --output")
    reject_other_files(output, own="fold_*")
    options: dict[str, Any] = {"split": split, "group_by": group_by, "output": output}
    dataset, values = fit_bundle(bundle, data, changes=changes, skip_bad=skip_bad, **options)
    selected = checked_folds(folds, {**read_json(bundle / "configs" / "train.json"), **values})
    values = {"training_dir": "$@bundle_root + '/..'", **values}
    with claim(output):
        check_target(output)
        runs = {}
        for fold in selected:
            own = {**values, "fold": fold}
            runs[fold] = write_run(verdict, data, output / f"fold_{fold}", values=own, presets=presets, resume=True)
        uri = values.get("tracking_uri", tracking_uri)
        return _train_and_join(runs, output, data, dataset, device=device, tracking_uri=uri, trainer=trainer)


def resume_run(
    folder: Path, *, device: str = "auto", tracking_uri: str | None = None, trust: bool = False
) -> TrainingResult | CrossValidation:
    """Resume a run or cross-validation after its last completed epoch; `trust` approves code in its bundle."""
    chosen = resolve_device(device)
    folds = [open_run(path.parents[1], trust=trust) for path in sorted(folder.glob("fold_*/configs/train.json"))]
    if not folds and not (folder / "configs" / "train.json").is_file():
        raise DataError("the folder contains no run", file=folder)
    run = folds[0] if folds else open_run(folder, trust=trust)
    with claim(folder):
        check_target(folder)
        if not folds:
            return train_run(run, resume=True, device=chosen, tracking_uri=tracking_uri)
        config = run.configs["train"]
        data = Path(config["dataset_dir"])
        problems: list[MedunetError] | None = [] if config.get("skip_cases") else None
        dataset = open_as(config, data, problems)
        runs = {run.configs["train"]["fold"]: run for run in folds}
        return _train_and_join(runs, folder, data, dataset, device=device, tracking_uri=tracking_uri)


def _train_and_join(
    runs: Mapping[int, PreparedRun],
    output: Path,
    data: Path,
    dataset: SegmentationDataset,
    *,
    device: str,
    tracking_uri: str | None,
    trainer: FoldTrainer | None = None,
) -> CrossValidation:
    outcomes = tuple(sorted((trainer or _one_by_one)(runs, device, tracking_uri), key=lambda outcome: outcome.fold))
    trained = {outcome.fold: outcome.run for outcome in outcomes if outcome.is_trained}
    is_interrupted = any(outcome.status == "stopped" for outcome in outcomes)
    if is_interrupted or not trained:
        return CrossValidation(output, outcomes, is_interrupted=is_interrupted)
    try:
        result = _join(trained, output, data, dataset, outcomes=outcomes, device=device)
    except KeyboardInterrupt:
        return CrossValidation(output, outcomes, is_interrupted=True)
    if (summary := result.postprocessed or result.summary) is not None:
        table = output / (OUT_OF_FOLD if result.postprocessed is None else POSTPROCESSED) / CSV_NAME
        names = [case.name for case in dataset.cases]
        track_cross_validation(output, uri=tracking_uri, summary=summary, table=table, names=names)
    return result


def _is_finished(run: PreparedRun) -> bool:
    """Return whether a run was trained to its last epoch, or stopped early."""
    last = run.folder / "models" / LAST_NAME
    try:
        state = load_checkpoint(last) if last.is_file() else {}
    except DataError:  # damaged: training continues from the previous checkpoint
        return False
    return bool(state.get("stopped") or (state.get("finished") and state["epoch"] >= run.configs["train"]["epochs"]))


def checked_folds(folds: Sequence[int] | None, config: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the folds to train, all of them for None."""
    count = config["folds"]
    if config.get("validation_cases"):
        raise ConfigError("validation_cases are set, so there are no folds", remedy="set validation_cases to []")
    selected = list(range(count)) if folds is None else sorted(set(folds))
    if not selected or not all(0 <= fold < count for fold in selected):
        raise ConfigError("unknown fold", received=selected, expected=f"all, or numbers from 0 to {count - 1}")
    return selected


def _one_by_one(runs: Mapping[int, PreparedRun], device: str, tracking_uri: str | None) -> Iterator[FoldOutcome]:
    for number, (fold, run) in enumerate(runs.items(), start=1):
        logger.info("fold %d (%d of %d)", fold, number, len(runs))
        outcome = train_fold(fold, run, device, tracking_uri)
        yield outcome
        if outcome.status == "stopped":
            return


def train_fold(fold: int, run: PreparedRun, device: str, tracking_uri: str | None) -> FoldOutcome:
    """Train the run of a fold, or resume it; an error becomes part of the outcome."""
    begun, folder = time.perf_counter(), run.folder
    try:
        if _is_finished(run):
            return FoldOutcome(fold, folder, "there already")
        shutil.rmtree(folder / PREDICTIONS, ignore_errors=True)  # of earlier weights
        train_run(run, resume=True, device=resolve_device(device), tracking_uri=tracking_uri)
        return FoldOutcome(fold, folder, "trained", time.perf_counter() - begun)
    except KeyboardInterrupt:
        return FoldOutcome(fold, folder, "stopped", time.perf_counter() - begun)
    except Exception as failure:  # a failed fold does not stop the others
        cause = find_cause(failure)
        text = str(cause) if cause is not None else f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
        logger.error("fold %d failed: %s", fold, text, exc_info=cause is None)
        return FoldOutcome(fold, folder, "failed", time.perf_counter() - begun, text)
    finally:
        gc.collect()  # engines and handlers refer to each other, and keep the cached images of the fold in memory


def _join(
    trained: Mapping[int, Path],
    output: Path,
    data: Path,
    dataset: SegmentationDataset,
    *,
    outcomes: tuple[FoldOutcome, ...],
    device: str,
) -> CrossValidation:
    """Predict and evaluate the held-out cases of each fold, choose postprocessing, and write the ensemble."""
    config = read_json(next(iter(trained.values())) / "configs" / "evaluate.json")
    pairs: list[Pair] = []
    objects: list[ObjectCase] = []
    failed: dict[str, str] = {}
    for fold, run in trained.items():
        items = datalist(data, section="validation", fold=fold, **split_options(config))
        predictor = Predictor(run, output_dir=run / PREDICTIONS, device=device, skip_done=True)
        predicted, errors = predict_items(predictor, items)
        logger.info("fold %d: %d cases predicted", fold, len(predicted))
        pairs, failed = pairs + predicted, failed | errors
        if dataset.instances:
            objects += predict_maps(predictor, items[:OBJECT_CASES])
    pairs.sort(key=lambda pair: pair.name)
    if not pairs:
        return CrossValidation(output, outcomes, failed_cases=failed)
    labels, regions = class_values(config), region_values(config)
    scoring: dict[str, Any] = {"regions": regions, "dims": dataset.spatial_dims, "ignore": dataset.ignore}
    scoring |= {"instances": dataset.instances, "groups": dataset.groups}
    summary = measure(pairs, labels, output / OUT_OF_FOLD, failed=failed, **scoring)
    failed = summary.get("failed_cases", {})
    pairs = [pair for pair in pairs if pair.name not in failed]
    if regions:
        order = config["regions_class_order"]
        rules = tuple(choose_region_rules(pairs, labels, regions, order=order, ignore=dataset.ignore))
    elif dataset.instances:
        rules = ()  # the values of `objects` take their place
    else:
        rules = tuple(choose_rules(pairs, labels, ignore=dataset.ignore))
    is_cleaned = any(rule.is_kept for rule in rules)
    cleaned = measure(pairs, labels, output / POSTPROCESSED, rules=rules, **scoring) if is_cleaned else None
    decision = {
        "folds": list(trained),
        "of_folds": config["folds"],
        "cases": len(pairs),
        "mean_dice": summary["mean_dice"],
        "mean_dice_postprocessed": (cleaned or summary)["mean_dice"],
        "postprocessing": [asdict(rule) for rule in rules],
        "failed_cases": failed,
    }
    write_ensemble(output, trained, rules=rules, decision=decision)
    if objects:
        fit_objects(output, objects)
    return CrossValidation(output, outcomes, summary, rules, cleaned, failed)
