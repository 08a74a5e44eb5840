"""The results in a run's folder: metrics of each case, predictions, the history of training."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medunet.bundle.explain import settings_of
from medunet.bundle.read import read_own
from medunet.config import read_json
from medunet.datasets import SegmentationDataset
from medunet.errors import DataError
from medunet.io import split_suffix
from medunet.metrics import CaseScores
from medunet.metrics.tables import JSON_NAME
from medunet.prediction import ClassRule
from medunet.prediction.configuration import CALIBRATION
from medunet.prediction.evaluation import label_maps
from medunet.reports import RunResults
from medunet.runs.ensemble import DECISION_NAME, rule_table
from medunet.runs.evaluate import OUT_OF_FOLD, PICTURES, class_values, region_values
from medunet.runs.seen import EVALUATION, SeenCases
from medunet.training import BEST_NAME, kept_entry, read_history

STALE_SECONDS = 60.0  # weights that are newer than their metrics by more than this were trained after them


@dataclass(frozen=True)
class FoundRun:
    """The content of a run's folder that a report needs."""

    results: RunResults
    labels: dict[str, int]  # value in files by class name
    members: dict[str, list[int]]  # values in files of each measured class; several if classes overlap
    predictions: dict[str, Path]  # label map by case name
    dataset: SegmentationDataset | None  # that the run was measured on; None if it is missing
    instances: bool  # whether label maps number objects


def metrics_of(run: Path, folder: str = EVALUATION) -> Path | None:
    """Return the metrics in a folder of `medunet evaluate`, or those of a cross-validation; None before evaluation."""
    names = (EVALUATION, OUT_OF_FOLD) if folder == EVALUATION else (folder,)
    return next((path for name in names if (path := run / name / JSON_NAME).is_file()), None)


def find_run(
    run: Path, name: str, dataset: SegmentationDataset | None, seen: SeenCases | None, notes: Sequence[str]
) -> FoundRun:
    """Gather the results in the folder of a run or a cross-validation; what is missing stays empty.

    `dataset` is the data set to report on, if there is one, and `seen` which of its cases the run was trained on.
    """
    config = read_own(run, "evaluate")
    folds = sorted(run.glob("fold_*"), key=lambda folder: (len(folder.name), folder.name))
    metrics = metrics_of(run, EVALUATION if seen is None else seen.folder)
    is_joined = metrics is not None and metrics.parent.name == OUT_OF_FOLD
    cases = read_cases(metrics) if metrics is not None else []
    predictions: dict[str, Path] = {}
    groups: dict[str, str] = {}
    if is_joined:
        for fold in folds:
            maps = label_maps(fold / "predictions") if (fold / "predictions").is_dir() else {}
            predictions |= maps
            groups |= dict.fromkeys(maps, fold.name.replace("_", " "))
    elif metrics is not None and (metrics.parent / "predictions").is_dir():
        predictions = label_maps(metrics.parent / "predictions")
    histories = {fold.name.replace("_", " "): read_history(fold) for fold in folds} or {"": read_history(run)}
    histories = {part: records for part, records in histories.items() if records}
    trained_on = frozenset[str]() if is_joined or seen is None else seen.names
    measured = {case["name"] for case in cases}
    remarks = list(notes)
    if count := len(trained_on & measured):
        remarks.append(
            f"{count} of {len(measured)} measured cases were trained on: their numbers say little about new images."
        )
    weights = run / "models" / BEST_NAME
    if metrics and weights.is_file() and weights.stat().st_mtime > metrics.stat().st_mtime + STALE_SECONDS:
        remarks.append("The weights are newer than the metrics; rerun medunet evaluate.")
    kind = "each by the fold that held it out" if is_joined else _kind(config, dataset, measured, seen)
    facts = _facts(config, dataset, histories)
    if cases:
        facts["measured"] = f"{len(cases)} cases on the grid of their images, {kind}"
    endings = {split_suffix(path.name)[1].lower() for path in predictions.values()}
    results = RunResults(
        name=name,
        cases=cases,
        histories=histories,
        facts=facts,
        settings=[setting for setting in settings_of(run) if not (folds and setting.id == "fold")],
        notes=remarks,
        trained_on=trained_on,
        groups=groups,
        cleaning=_rules_tried(run / DECISION_NAME) if is_joined else (),
        reliability=read_json(run / CALIBRATION)["probabilities"] if (run / CALIBRATION).is_file() else {},
        unit="px" if endings and endings <= PICTURES else "mm",  # pictures have no scale
    )
    labels = class_values(config)
    members = region_values(config) or {name: [value] for name, value in labels.items()}
    return FoundRun(results, labels, members, predictions, dataset, bool(config.get("instances", False)))


def read_cases(path: Path) -> list[CaseScores]:
    """Return the cases of a `metrics.json`; null becomes NaN."""
    try:
        return cast("list[CaseScores]", json.loads(path.read_text(encoding="utf-8"), object_hook=_with_nan)["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("not a table of metrics", file=path, remedy="rerun medunet evaluate") from error


def _with_nan(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in entries.items()}


def _facts(
    config: Mapping[str, Any], dataset: SegmentationDataset | None, histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, str]:
    facts = {} if dataset is None else {"data": f"{dataset.name}, {len(dataset.cases)} labelled cases"}
    facts["classes"] = ", ".join(config["label_names"])
    network = config.get("member_def", config["network_def"])
    facts["network"] = f"{str(network['_target_']).rpartition('.')[2]} {config['spatial_dims']}D"
    if "channels" in network:
        facts["network"] += ", channels " + "-".join(map(str, network["channels"]))
    for part, history in histories.items():
        minutes = sum(float(record.get("seconds", 0)) for record in history) / 60
        took = f"{minutes:.0f} min" if minutes >= 1.5 else f"{60 * minutes:.0f} s"
        text = f"{history[-1]['epoch']} epochs, {history[-1]['iteration']} steps, {took}"
        if kept := kept_entry(history):
            text += f", weights of epoch {kept['epoch']}"
        waits = [record["data_wait"] for record in history if "data_wait" in record]
        if waits:
            text += f", waited for data {sum(waits) / len(waits):.0%} of the time"
        facts[f"training, {part}" if part else "training"] = text
    return facts


def _kind(
    config: Mapping[str, Any], dataset: SegmentationDataset | None, measured: set[str], seen: SeenCases | None
) -> str:
    """Describe which cases were evaluated."""
    if dataset is None or seen is None:
        return "whose data set is missing"
    if measured & seen.names:
        return "some of them trained on"
    if seen.folder == EVALUATION and measured <= {case.name for case in dataset.cases}:
        return "chosen for validation" if config.get("validation_cases") else f"validation of fold {config['fold']}"
    if measured <= {case.name for case in dataset.test}:
        return "all of them for testing only"
    if not seen.is_known:
        return "and it is not recorded which cases the run was trained on"
    return f"of {dataset.name}, none of them trained on"


def _rules_tried(path: Path) -> list[list[str]]:
    """Return a table of the postprocessing that a cross-validation tried; empty for a single run."""
    decision = json.loads(path.read_text(encoding="utf-8"), object_hook=_with_nan) if path.is_file() else {}
    return rule_table([ClassRule(**entry) for entry in decision.get("postprocessing", [])]) if decision else []
