"""What a run's folder holds for a report: metrics of each case, predictions, the history of its training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from medunet.reports import EpochRecord, RunResults
from medunet.runs.ensemble import DECISION_NAME
from medunet.runs.evaluate import OUT_OF_FOLD, class_values, region_values
from medunet.runs.seen import EVALUATION, SeenCases, seen_cases
from medunet.training import BEST_NAME, kept_entry, read_history

PICTURE_ENDINGS = frozenset({".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"})
"""Of label maps whose pixels have no size."""

STALE_SECONDS = 60.0
"""Weights that are newer than their metrics by more than this were trained after them; a copy may shuffle less."""


@dataclass(frozen=True)
class FoundRun:
    """A run as a report needs it.

    Args:
        results: for the page.
        labels: value in the files by class name.
        members: values in the files of each class that was measured; of several where classes overlap.
        predictions: label maps by name of the case.
        dataset: that the run was measured on; None where it is not to be found.
    """

    results: RunResults
    labels: dict[str, int]
    members: dict[str, tuple[int, ...]]
    predictions: dict[str, Path] = field(default_factory=dict)
    dataset: SegmentationDataset | None = None


def is_measured(run: Path, folder: str = EVALUATION) -> bool:
    """Whether a run has metrics of single cases: in a folder of `medunet evaluate`, or out of fold."""
    folders = (EVALUATION, OUT_OF_FOLD) if folder == EVALUATION else (folder,)
    return any((run / name / JSON_NAME).is_file() for name in folders)


def is_trained(run: Path) -> bool:
    """Whether a run, or an ensemble of folds, has weights."""
    return (run / "models" / BEST_NAME).is_file() or any(run.glob("models/fold_*.pt"))


def data_of(run: Path) -> Path | None:
    """The data set that a run's config names, if it is there."""
    folder = str(read_own(run, "evaluate").get("dataset_dir", ""))
    path = Path(folder)
    return path if path.is_absolute() and path.exists() else None


def find_run(
    run: Path,
    name: str,
    *,
    dataset: SegmentationDataset | None = None,
    seen: SeenCases | None = None,
    notes: Sequence[str] = (),
) -> FoundRun:
    """Gather what is in a run's folder; what is not there stays empty.

    Args:
        run: a run, or the folder of a cross-validation.
        name: what the report calls it.
        dataset: that it was measured on.
        seen: what :func:`medunet.runs.seen.seen_cases` returns for the data set, if it is known already.
        notes: what the reader must know.

    Raises:
        ConfigError: the folder is not a bundle.
        DataError: a file of results is broken.
    """
    config = read_own(run, "evaluate")
    folds = sorted(run.glob("fold_*"), key=lambda folder: (len(folder.name), folder.name))
    if seen is None and dataset is not None:
        seen = seen_cases(run, dataset)
    folder = EVALUATION if seen is None else seen.folder
    is_joined = not (run / folder / JSON_NAME).is_file() and folder == EVALUATION
    is_joined &= (run / OUT_OF_FOLD / JSON_NAME).is_file()
    metrics = run / (OUT_OF_FOLD if is_joined else folder) / JSON_NAME
    cases = read_cases(metrics) if metrics.is_file() else []
    predictions: dict[str, Path] = {}
    groups: dict[str, str] = {}
    if is_joined:
        for fold in folds:
            found = _label_maps(fold / "predictions")
            predictions |= found
            groups |= dict.fromkeys(found, fold.name.replace("_", " "))
    else:
        predictions = _label_maps(run / folder / "predictions")
    histories = {fold.name.replace("_", " "): read_history(fold) for fold in folds} or {"": read_history(run)}
    histories = {part: records for part, records in histories.items() if records}
    trained_on = frozenset[str]() if is_joined or seen is None else seen.names
    measured = [case["name"] for case in cases]
    kind = "each by the fold that had not seen it" if is_joined else _kind(config, dataset, measured, seen)
    kind = f"{len(measured)} cases on the grid of their images, {kind}" if measured else ""
    told = list(notes)
    if trained_on & set(measured):
        count = len(trained_on & set(measured))
        told.append(
            f"{count} of {len(measured)} measured cases were trained on: their numbers say little about new images."
        )
    weights = run / "models" / BEST_NAME
    if cases and weights.is_file() and weights.stat().st_mtime > metrics.stat().st_mtime + STALE_SECONDS:
        told.append("The weights are newer than the measured predictions; medunet evaluate measures again.")
    results = RunResults(
        name=name,
        cases=cases,
        histories=cast("Mapping[str, Sequence[EpochRecord]]", histories),
        facts=_facts(config, dataset, histories, measured=kind),
        settings=[setting for setting in settings_of(run) if not (folds and setting.id == "fold")],  # it has all
        notes=told,
        trained_on=trained_on,
        groups=groups,
        cleaning=_cleaning(run) if is_joined else (),
        unit=_unit(predictions),
    )
    labels = class_values(config)
    members = {name: tuple(values) for name, values in region_values(config).items()}
    return FoundRun(
        results, labels, members or {name: (value,) for name, value in labels.items()}, predictions, dataset
    )


def read_cases(path: Path) -> list[CaseScores]:
    """The cases of a `metrics.json`; null becomes NaN again.

    Raises:
        DataError: it is no such file.
    """
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return cast("list[CaseScores]", _with_nan(cases))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("not a table of metrics", file=path, remedy="measure again with medunet evaluate") from error


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_nan(entry) for entry in value]
    return math.nan if value is None else value


def _label_maps(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    names = [(split_suffix(path.name)[0], path) for path in files]
    return {stem: path for stem, path in names if not stem.endswith("_prob")}


def _facts(
    config: Mapping[str, Any],
    dataset: SegmentationDataset | None,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    measured: str,
) -> dict[str, str]:
    facts: dict[str, str] = {}
    if dataset is not None:
        facts["data"] = f"{dataset.name}, {len(dataset.cases)} labelled cases"
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
    if measured:
        facts["measured"] = measured
    return facts


def _unit(predictions: Mapping[str, Path]) -> str:
    """Of distances: pictures have no millimetres."""
    endings = {split_suffix(path.name)[1].lower() for path in predictions.values()}
    return "px" if endings and endings <= PICTURE_ENDINGS else "mm"


def _kind(
    config: Mapping[str, Any],
    dataset: SegmentationDataset | None,
    measured: Sequence[str],
    seen: SeenCases | None,
) -> str:
    if dataset is None or seen is None:
        return "whose data set is not at hand"
    if set(measured) & seen.names:
        return "some of them trained on"
    if seen.folder == EVALUATION and set(measured) <= {case.name for case in dataset.cases}:
        return "chosen for validation" if config.get("validation_cases") else f"validation of fold {config['fold']}"
    if set(measured) <= {case.name for case in dataset.test}:
        return "all of them for testing only"
    if not seen.is_known:
        return "and it is not recorded which cases the run was trained on"
    return f"of {dataset.name}, none of them trained on"


def _cleaning(run: Path) -> list[list[str]]:
    path = run / DECISION_NAME
    if not path.is_file():
        return []
    rows = [["class", "Dice", "rule tried", "Dice with it", "cases better", "cases worse", "used by the ensemble"]]
    for rule in _with_nan(read_json(path)).get("postprocessing", []):
        tried = ["largest component only"] if rule["keep_largest"] else []
        tried += [f"no component below {rule['min_size']:g} mm³ (2D: mm²)"] if rule["min_size"] else []
        before, after = (f"{rule[key]:.4f}" for key in ("dice_before", "dice_after"))
        used = "yes" if rule["is_kept"] else "no"
        name = str(rule["name"])
        rows.append([name, before, ", ".join(tried) or "none", after, str(rule["better"]), str(rule["worse"]), used])
    return rows
