"""The tasks of `scripts.bench.quality` that plan first: hippocampus --planned, ensemble, few, sts.

Every row is written to its JSON as soon as it is measured, with date, machine and revision, and is not measured again;
an interrupted training run is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunet.bundle import plan_bundle
from medunet.datasets import Case, open_dataset
from medunet.files import write_atomically
from medunet.runs import evaluate_bundle, train_bundle, train_folds
from medunet.training import LAST_NAME

from .measure import fold_by_name, machine, read_json, split_by_name, write_json

FEW_VARIANTS: dict[str, dict[str, Any]] = {
    "few": {},
    "few, without elastic deformation": {"augment::deform::elastic_prob": 0.0},
}
STS_FOLDS = 7
"""Of 14 cases: two are left out of each training."""


@dataclass(frozen=True)
class Options:
    """What may be shortened for a trial.

    Args:
        data: the data set.
        work: where runs are kept.
        results: the JSON file of the task.
        minutes: of a training; several make a curve.
        sizes: numbers of training cases, for `few`.
        seeds: how many, for `few`.
        changes: further values by config id.
    """

    data: Path
    work: Path
    results: Path
    minutes: tuple[float, ...]
    sizes: tuple[int, ...]
    seeds: int
    changes: dict[str, Any]


Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def measure(rows: Rows, options: Options) -> dict[str, Any]:
    """Measure the rows that the results do not hold yet."""
    known: dict[str, Any] = read_json(options.results).get("rows", {})
    for name, run in rows:
        if name not in known:
            row = {key: _without_folder(value) for key, value in run().items()}
            known[name] = {**row, "machine": machine()}
            write_json(options.results, {"rows": known})
    return known


def _without_folder(value: Any) -> Any:
    """Leave out of a summary where it was written."""
    return {key: one for key, one in value.items() if key != "folder"} if isinstance(value, dict) else value


def hippocampus(options: Options) -> Rows:
    """Fold 0 of the 200 cases, planned for each of the times."""
    for minutes in options.minutes:
        folder = options.work / f"hippocampus_planned_{minutes:g}"
        yield f"planned, fold 0, {minutes:g} minutes", lambda m=minutes, f=folder: _fold_0(options, f, m)


def ensemble(options: Options) -> Rows:
    """Five folds of the training cases of fold 0, each planned for the minutes; its validation cases are measured."""
    (minutes, *_) = options.minutes

    def run() -> dict[str, Any]:
        folder = options.work / "ensemble"
        training, held_out = fold_by_name(open_dataset(options.data).cases)
        inner = subset(options.data, folder / "training_cases", training)
        measured = subset(options.data, folder / "held_out_cases", held_out)
        planned = bundle(inner, folder, minutes)
        result = train_folds(planned, inner, folder / "folds", changes=options.changes)
        if not result.is_whole:
            raise SystemExit("not all folds are trained; the same command goes on")
        members = [evaluate_bundle(one, measured) for one in sorted((folder / "folds").glob("fold_*"))]
        return {
            "metrics": evaluate_bundle(folder / "folds", measured),
            "out_of_fold": result.summary,
            "members": [summary["mean_dice"] for summary in members],
        }

    yield f"ensemble of five folds, {minutes:g} minutes a fold", run


def draw(cases: Sequence[Case], size: int, *, seed: int) -> list[Case]:
    """So many of the cases, in their order."""
    drawn = np.random.default_rng(seed).choice(len(cases), size, replace=False)
    return [cases[index] for index in sorted(drawn)]


def few(options: Options) -> Rows:
    """Some of the training cases of fold 0, drawn by seed; all its validation cases are measured."""
    (minutes, *_) = options.minutes
    dataset = open_dataset(options.data)
    training, validation = fold_by_name(dataset.cases)
    for size in options.sizes:
        for seed in range(options.seeds):
            chosen = draw(training, size, seed=seed)
            for name, changes in FEW_VARIANTS.items():
                folder = options.work / f"few_{size}_{seed}_{name.replace(',', '').replace(' ', '_')}"

                def run(
                    folder: Path = folder, chosen: list[Case] = chosen, changes: Any = changes, seed: int = seed
                ) -> dict[str, Any]:
                    alone = subset(options.data, folder / "training_cases", chosen)
                    together = subset(options.data, folder / "all_cases", [*chosen, *validation])
                    own = {**changes, "seed": seed, "validation_cases": [case.name for case in validation]}
                    return _planned(options, folder, minutes, plan_on=alone, train_on=together, changes=own)

                yield f"{size} cases, seed {seed}, {name}", run


def sts(options: Options) -> Rows:
    """The 14 CT sarcomas, two left out at a time; every case is measured by the fold that did not see it."""
    (minutes, *_) = options.minutes

    def run() -> dict[str, Any]:
        folder = options.work / "sts"
        planned = bundle(options.data, folder, minutes)
        cases = open_dataset(options.data).cases
        changes = {"split": split_by_name(cases, min(STS_FOLDS, len(cases))), **options.changes}
        result = train_folds(planned, options.data, folder / "folds", changes=changes)
        if not result.is_whole or result.summary is None:
            raise SystemExit("not all folds are trained; the same command goes on")
        scores = json.loads((folder / "folds" / "out_of_fold" / "metrics.json").read_text(encoding="utf-8"))["cases"]
        return {
            "metrics": result.summary,
            "postprocessed": result.postprocessed or {},
            "dice_by_case": {case["name"]: case["mean_dice"] for case in scores},
        }

    yield f"leave two out, {minutes:g} minutes a fold", run


def _fold_0(options: Options, folder: Path, minutes: float) -> dict[str, Any]:
    return _planned(
        options,
        folder,
        minutes,
        plan_on=options.data,
        train_on=options.data,
        changes={"split": split_by_name(open_dataset(options.data).cases)},
    )


def _planned(
    options: Options, folder: Path, minutes: float, *, plan_on: Path, train_on: Path, changes: dict[str, Any]
) -> dict[str, Any]:
    """Plan, train (or go on) and measure on the cases that were not trained on."""
    planned = bundle(plan_on, folder, minutes)
    presets = ["few"] if "validation_cases" in changes else []
    run = folder / "run"
    wanted = {**changes, **options.changes}
    result = train_bundle(planned, train_on, run, changes=wanted, presets=presets, resume=(run / "models").is_dir())
    summary = evaluate_bundle(run, train_on, run / "evaluation")
    history = result.history
    return {
        "training_minutes": round(sum(entry["seconds"] for entry in history) / 60, 1),
        "steps": history[-1]["iteration"],
        "curve": [[entry["iteration"], entry["val_dice"]] for entry in history if entry.get("val_dice")],
        "metrics": summary,
    }


def bundle(data: Path, folder: Path, minutes: float) -> Path:
    """The plan, made once: its schedule follows from a measurement, and a resumed training needs the same."""
    planned = folder / "bundle"
    if not (planned / "docs" / "README.md").is_file() and not (folder / "run" / "models" / LAST_NAME).is_file():
        plan_bundle(data, planned, seconds=60 * minutes)
    return planned


def subset(data: Path, folder: Path, cases: Sequence[Case], labels: Mapping[Case, Path] | None = None) -> Path:
    """Write a data set of some cases of another one, as links; `labels` replace those of the data set."""
    manifest = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    entries = []
    for case in cases:
        label = (labels or {}).get(case, case.label)
        if label is None:
            continue
        entry = {"image": case.images[0], "label": label}
        for key, file in entry.items():
            link = folder / f"{key}s" / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())
        entries.append({key: f"./{key}s/{file.name}" for key, file in entry.items()})
    text = json.dumps({**manifest, "training": entries, "test": [], "numTraining": len(entries)})
    write_atomically(folder / "dataset.json", text)
    return folder
