"""Fold after fold, then every case predicted by the fold that has not seen it, then one ensemble."""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunet.config import read_json
from medunet.datasets import SegmentationDataset, datalist, open_dataset
from medunet.errors import ConfigError, DataError, MedunetError, find_cause
from medunet.files import check_target, claim, reject_other_files
from medunet.io.options import ReadOptions
from medunet.metrics import CSV_NAME, Summary
from medunet.prediction import ClassRule, Pair, Predictor, reason
from medunet.runs.ensemble import write_ensemble
from medunet.runs.evaluate import (
    OUT_OF_FOLD,
    best_rules,
    class_values,
    measure,
    pair_of,
    region_values_of,
    source_of,
    wants_em,
)
from medunet.runs.train import PreparedRun, fit_data, judged_run, train_prepared, write_run
from medunet.runtime import load_checkpoint, resolve_device
from medunet.tracking import track_cross_validation
from medunet.training import LAST_NAME
from medunet.trust import require_trust

logger = logging.getLogger(__name__)

POSTPROCESSED = f"{OUT_OF_FOLD}_postprocessed"
"""Folder with the metrics of the same predictions after the cleaning that was chosen."""

PREDICTIONS = "predictions"
"""Folder in a fold's run."""

Status = Literal["trained", "there already", "failed", "stopped"]

FoldTrainer = Callable[[Mapping[int, PreparedRun], str, "str | None"], Iterable["FoldOutcome"]]
"""Trains runs by fold, on a device by name, tracked by a store; gives outcomes as they are known, in any order."""


@dataclass(frozen=True)
class FoldOutcome:
    """What became of one fold.

    Args:
        fold: which.
        run: its folder.
        status: 'there already' where it had been trained before.
        seconds: of training in this call.
        error: why it failed.
    """

    fold: int
    run: Path
    status: Status
    seconds: float = 0.0
    error: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether there is a finished run."""
        return self.status in ("trained", "there already")


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation came to.

    Args:
        output: its folder, a bundle when at least one fold is trained.
        folds: outcomes of the folds that were asked for, in order; after Ctrl-C up to the one that was stopped.
        summary: out-of-fold metrics; None where nothing could be measured.
        rules: for every class the cleaning that was tried, and whether it is used.
        postprocessed: out-of-fold metrics after cleaning; None where no rule is used.
        failed_cases: why a case has no out-of-fold prediction, by name.
        is_interrupted: by Ctrl-C.
    """

    output: Path
    folds: tuple[FoldOutcome, ...]
    summary: Summary | None = None
    rules: tuple[ClassRule, ...] = ()
    postprocessed: Summary | None = None
    failed_cases: dict[str, str] = field(default_factory=dict)
    is_interrupted: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all that was asked for is there."""
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
) -> CrossValidation:
    """Train folds into ``output/fold_K`` and make of ``output`` the bundle of their ensemble.

    Called again with the same options it goes on where it was: finished folds are kept, an unfinished one is resumed,
    a failed one tried again. A fold that fails is reported and the rest goes on. Then every case of the folds is
    predicted by the run that did not train on it (``fold_K/predictions``), measured (``out_of_fold/metrics.csv`` and
    ``.json``), and cleaning of the label maps is decided upon (see :func:`medunet.prediction.choose_rules` and
    :func:`medunet.prediction.choose_region_rules`).

    Args:
        bundle: folder of the bundle to start from.
        data: labelled data set.
        output: folder of the cross-validation.
        folds: which; None for all. They are shared out as the bundle's ``folds`` says.
        changes: values by config id, over those that follow from the data.
        presets: overlays of the bundle, under what follows from the data.
        device: as in :func:`train_bundle`, as are tracking_uri, trust and skip_bad.
        tracking_uri: see device.
        trust: see device.
        trainer: how the folds are trained; None: one after the other in this process.
        skip_bad: see device.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: a data set, an option or a device that cannot work; an output folder that holds a single run, or
            runs of another configuration.
    """
    resolve_device(device)  # an error before anything is made
    require_trust(bundle, trust=trust)
    if (output / "models" / LAST_NAME).is_file():
        raise DataError("the output folder holds a single run", file=output, remedy="give another --output")
    reject_other_files(output, own="fold_*")
    dataset, values = fit_data(bundle, data, changes=changes, skip_bad=skip_bad)
    values = {**values, **(changes or {})}
    config = read_json(bundle / "configs" / "train.json")
    wanted = _checked_folds(folds, {**config, **values})
    if "training_dir" in config:  # bundles made before tracking knew of folds lack it
        values.setdefault("training_dir", "$@bundle_root + '/..'")
    uri = values.get("tracking_uri", tracking_uri)
    with claim(output):
        check_target(output)
        runs = {
            fold: write_run(
                bundle, data, output / f"fold_{fold}", values={**values, "fold": fold}, presets=presets, resume=True
            )
            for fold in wanted
        }
        return _train_and_join(runs, output, data, dataset, device=device, tracking_uri=uri, trainer=trainer)


def resume_folds(
    output: Path, *, device: str = "auto", tracking_uri: str | None = None, trust: bool = False
) -> CrossValidation:
    """Go on with a cross-validation as :func:`train_folds` would, from what its folder says.

    Args:
        output: its folder.
        device: as in :func:`train_bundle`, as are tracking_uri and trust.
        tracking_uri: see device.
        trust: see device.

    Raises:
        SecurityError: a run of a fold is not trusted.
        ConfigError: the folder holds no folds.
    """
    resolve_device(device)
    found = [judged_run(path.parents[1], trust=trust) for path in sorted(output.glob("fold_*/configs/train.json"))]
    if not found:
        raise ConfigError("the folder holds no folds", file=output, remedy="train them with --folds")
    runs = {run.configs["train"]["fold"]: run for run in found}
    config = found[0].configs["train"]
    data = Path(config["dataset_dir"])
    with claim(output):
        check_target(output)
        problems: list[MedunetError] | None = [] if config.get("skip_cases") else None
        dataset = open_dataset(data, problems=problems, read=ReadOptions.of_config(config))
        return _train_and_join(runs, output, data, dataset, device=device, tracking_uri=tracking_uri)


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
    outcomes = sorted((trainer or _one_by_one)(runs, device, tracking_uri), key=lambda outcome: outcome.fold)
    if any(outcome.status == "stopped" for outcome in outcomes):
        return CrossValidation(output, tuple(outcomes), is_interrupted=True)
    trained = {outcome.fold: outcome.run for outcome in outcomes if outcome.is_trained}
    if not trained:
        return CrossValidation(output, tuple(outcomes))
    try:
        result = _join(trained, output, data, dataset, outcomes=tuple(outcomes), device=device)
    except KeyboardInterrupt:
        return CrossValidation(output, tuple(outcomes), is_interrupted=True)
    if result.summary is not None:
        track_cross_validation(
            output,
            uri=tracking_uri,
            summary=result.postprocessed or result.summary,
            table=output / (OUT_OF_FOLD if result.postprocessed is None else POSTPROCESSED) / CSV_NAME,
            names=[case.name for case in dataset.cases],
        )
    return result


def is_finished(run: PreparedRun) -> bool:
    """Whether a run was trained to its last epoch, or stopped early."""
    last = run.folder / "models" / LAST_NAME
    try:
        state = load_checkpoint(last) if last.is_file() else {}
    except DataError:  # damaged: training continues from the one before
        return False
    return bool(state.get("stopped") or (state.get("finished") and state["epoch"] >= run.configs["train"]["epochs"]))


def _checked_folds(folds: Sequence[int] | None, config: Mapping[str, Any]) -> list[int]:
    count = config["folds"]
    if config.get("validation_cases"):
        raise ConfigError("validation_cases are set, so there are no folds", remedy="set validation_cases to []")
    wanted = list(range(count)) if folds is None else sorted(set(folds))
    if not wanted or not all(0 <= fold < count for fold in wanted):
        raise ConfigError("no such fold", received=wanted, expected=f"0 to {count - 1}")
    return wanted


def _one_by_one(runs: Mapping[int, PreparedRun], device: str, tracking_uri: str | None) -> Iterator[FoldOutcome]:
    for number, (fold, run) in enumerate(runs.items(), start=1):
        logger.info("fold %d (%d of %d)", fold, number, len(runs))
        outcome = train_fold(fold, run, device, tracking_uri)
        yield outcome
        if outcome.status == "stopped":
            return


def train_fold(fold: int, run: PreparedRun, device: str, tracking_uri: str | None) -> FoldOutcome:
    """Train the run of a fold, or resume it; an error is part of the outcome."""
    begun, folder = time.perf_counter(), run.folder
    try:
        if is_finished(run):
            return FoldOutcome(fold, folder, "there already")
        shutil.rmtree(folder / PREDICTIONS, ignore_errors=True)  # of earlier weights
        train_prepared(run, resume=True, device=resolve_device(device), tracking_uri=tracking_uri)
        return FoldOutcome(fold, folder, "trained", time.perf_counter() - begun)
    except KeyboardInterrupt:
        return FoldOutcome(fold, folder, "stopped", time.perf_counter() - begun)
    except Exception as failure:  # one fold's failure is not the others'
        cause = find_cause(failure)
        text = str(cause) if cause is not None else f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
        logger.error("fold %d failed: %s", fold, text, exc_info=cause is None)
        return FoldOutcome(fold, folder, "failed", time.perf_counter() - begun, text)
    finally:
        gc.collect()  # engines and handlers refer to each other, and hold the cached images of the fold


def _join(
    trained: Mapping[int, Path],
    output: Path,
    data: Path,
    dataset: SegmentationDataset,
    *,
    outcomes: tuple[FoldOutcome, ...],
    device: str,
) -> CrossValidation:
    config = read_json(next(iter(trained.values())) / "configs" / "evaluate.json")
    labels = class_values(config)
    pairs: list[Pair] = []
    failed: dict[str, str] = {}
    for fold, run in trained.items():
        found, errors = _predict(run, data, fold=fold, folds=config["folds"], device=device)
        pairs += found
        failed |= errors
    pairs.sort(key=lambda pair: pair.name)
    if not pairs:
        return CrossValidation(output, outcomes, failed_cases=failed)
    em, regions = wants_em(None, dataset.spatial_dims, labels), region_values_of(config)
    summary = measure(pairs, labels, output / OUT_OF_FOLD, regions=regions, em=em, ignore=dataset.ignore, failed=failed)
    failed = summary.get("failed_cases", {})
    pairs = [pair for pair in pairs if pair.name not in failed]
    rules = best_rules(pairs, config, ignore=dataset.ignore)
    cleaned: Summary | None = None
    if any(rule.is_kept for rule in rules):
        options: dict[str, Any] = {"regions": regions, "em": em, "ignore": dataset.ignore}
        cleaned = measure(pairs, labels, output / POSTPROCESSED, rules=rules, **options)
    decision = {
        "folds": list(trained),
        "of_folds": config["folds"],
        "cases": len(pairs),
        "mean_dice": summary["mean_dice"],
        "mean_dice_postprocessed": summary["mean_dice"] if cleaned is None else cleaned["mean_dice"],
        "postprocessing": [asdict(rule) for rule in rules],
        "failed_cases": failed,
    }
    write_ensemble(output, trained, rules=rules, decision=decision)
    return CrossValidation(output, outcomes, summary, rules, cleaned, failed)


def _predict(run: Path, data: Path, *, fold: int, folds: int, device: str) -> tuple[list[Pair], dict[str, str]]:
    """A fold's validation cases, predicted by its own run; those that lie there already are kept."""
    skipped = read_json(run / "configs" / "train.json").get("skip_cases", ())
    items = datalist(data, section="validation", fold=fold, folds=folds, skip_cases=skipped)
    predictor = Predictor(run, output_dir=run / PREDICTIONS, device=device, skip_done=True)
    pairs: list[Pair] = []
    failed: dict[str, str] = {}
    results = predictor.predict([source_of(item) for item in items])
    for item, result in zip(items, results, strict=True):
        if result.path is None:
            failed[str(item["name"])] = reason(result.error or DataError("no label map"))
            logger.error("no out-of-fold prediction: %s", result.error)
        else:
            pairs.append(pair_of(item, result.path))
    logger.info("fold %d: %d cases predicted", fold, len(pairs))
    return pairs, failed
