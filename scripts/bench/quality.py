"""Train shipped and planned bundles on real images and measure them on cases they have not seen.

    python -m scripts.bench.quality hippocampus --data DATA/Task04_Hippocampus
    python -m scripts.bench.quality em          --data DATA/ISBI2012_EM [--only planned --slices 0 1 2 3]
    python -m scripts.bench.quality hippocampus --data DATA/Task04_Hippocampus --planned [--minutes 15 30]
    python -m scripts.bench.quality ensemble    --data DATA/Task04_Hippocampus [--minutes 30]
    python -m scripts.bench.quality few         --data DATA/Task04_Hippocampus [--minutes 8]
    python -m scripts.bench.quality sts         --data DATA/STS_GTV_CT [--minutes 30]

Results go to scripts/results/quality_*.json and are printed as a table. Give it the machine to itself; runs are kept
under --work and resumed, so that an interrupted measurement goes on (its training time is the sum of its epochs).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.segmentation import find_boundaries

from medunet.bundle import find_bundle
from medunet.config import parse_settings
from medunet.datasets import open_dataset
from medunet.files import write_atomically
from medunet.io import read_volume
from medunet.metrics import best_em_scores, em_scores, summarise
from medunet.prediction import Pair, Predictor, evaluate_pairs
from medunet.reports import render_overlay
from medunet.runs import evaluate_bundle, train_bundle
from medunet.transforms import separate_cells

from . import quality_planned
from .measure import RESULTS, machine, read_json, split_by_name, write_json

EM_SLICES = (16, 17, 18, 19)
EM_VALIDATION = [f"em_{number}" for number in EM_SLICES]
ONE_VIEW = {"_target_": "medunet.inferers.OverlapTileInferer", "tile_size": "@tile_size"}
EIGHT_VIEWS = {"_target_": "medunet.inferers.MirrorInferer", "inferer": ONE_VIEW, "axes": [0, 1], "transpose": True}
THREE_SIZES = {"_target_": "medunet.inferers.ScaleInferer", "inferer": EIGHT_VIEWS, "scales": [0.75, 0.87, 1.0]}
VIEWS: dict[str, dict[str, Any]] = {
    "one view": {"tile_inferer": ONE_VIEW},
    "eight views": {"tile_inferer": EIGHT_VIEWS},
    "eight views of three sizes": {"tile_inferer": THREE_SIZES},
}
PLANNED_VIEWS: dict[str, dict[str, Any]] = {
    "as planned": {},
    "eight views of three sizes": {"tile_inferer": THREE_SIZES, "mirror_axes": []},
}
EM_VARIANTS: dict[str, dict[str, Any]] = {
    "unet_2d": {
        "bundle": "unet_2d",
        "changes": {
            "epochs": 95,
            "val_interval": 19,
            # a membrane pixel counts more: a gap merges two cells, a membrane drawn too thick costs little
            "loss": {"_target_": "medunet.losses.BorderWeightedCELoss", "class_weights": [5.0, 1.0]},
        },
        "boundary": 5 / 6,  # membranes weigh 5 to 1: where both are as likely, the network says 5/6
    },
    # a membrane cut at a slant is faint in its slice; the slices before and behind show where it goes
    "unet_2d, neighbouring slices as channels": {
        "bundle": "unet_2d",
        "neighbours": True,
        "changes": {
            "epochs": 86,  # 30 minutes
            "val_interval": 43,
            "loss": {"_target_": "medunet.losses.BorderWeightedCELoss", "class_weights": [5.0, 1.0]},
        },
        "boundary": 5 / 6,
    },
    # on a CPU half the paper's width, no dropout in so short a training, and tiles of 380 (196 out), not 572 (388 out)
    "unet_2015, first level 32": {
        "bundle": "unet_2015",
        "changes": {
            "network_def::channels": [32, 64, 128, 256, 512],
            "network_def::dropout": 0.0,
            "patch_size": [380, 380],
            "batch_size": 2,
            "learning_rate": 0.002,
            "epochs": 110,
            "val_interval": 22,
        },
        "boundary": 0.77,  # balanced classes: the share of interior in the slices that train
    },
    "planned": {"minutes": 30.0, "boundary": 0.5},
    "planned, few": {"minutes": 30.0, "presets": ["few"], "boundary": 0.77},
}


def train(
    bundle: str | Path, data: Path, run: Path, *, changes: dict[str, Any], presets: Sequence[str] = ()
) -> dict[str, Any]:
    """Train (or resume) a run; returns minutes, steps and epochs."""
    result = train_bundle(find_bundle(bundle), data, run, changes=changes, presets=presets, resume=True)
    seconds = sum(entry["seconds"] for entry in result.history)
    return {
        "training_minutes": round(seconds / 60, 1),
        "steps": result.history[-1]["iteration"],
        "kept_epoch": result.kept_epoch,
        "epochs": result.epochs,
    }


def hippocampus(data: Path, work: Path) -> dict[str, Any]:
    """Fold 0: cases 0, 5, 10 ... of the sorted names are measured, the others train."""
    run = work / "hippocampus_unet_3d"
    trained = train("unet_3d", data, run, changes={"split": split_by_name(open_dataset(data).cases)})
    summary = evaluate_bundle(run, data, run / "evaluation")
    draw_median(run, data, RESULTS / "hippocampus.png")
    case = open_dataset(data).cases[0].images[0]
    begun = time.perf_counter()
    command = ["medunet", "predict", str(run), str(case), "--output", str(run / "cold")]
    subprocess.run(command, check=True, capture_output=True)
    return {"unet_3d, fold 0": {**trained, "metrics": summary, "cold_predict_seconds": time.perf_counter() - begun}}


def draw_median(run: Path, data: Path, path: Path) -> None:
    """The case in the middle of the validation cases, prediction over reference."""
    scores = json.loads((run / "evaluation" / "metrics.json").read_text())["cases"]
    chosen = sorted(scores, key=lambda case: case["mean_dice"])[len(scores) // 2]["name"]
    dataset = open_dataset(data)
    case = next(case for case in dataset.cases if case.name == chosen)
    files = (case.images[0], run / "evaluation" / "predictions" / case.images[0].name, case.label)
    image, pred, ref = (read_volume(file).image for file in files)
    write_atomically(path, render_overlay(image, pred[0], ref[0], labels=dataset.labels, title=chosen))


def with_neighbours(data: Path, folder: Path) -> Path:
    """The same slices as a data set of three channels: the slice before, the slice, the slice behind; by links."""
    cases = open_dataset(data).cases  # consecutive slices of one stack, in the order of their names
    for index, case in enumerate(cases):
        links = {folder / "labels" / f"{case.name}.png": case.label}
        for channel, shift in enumerate((-1, 0, 1)):
            other = cases[min(max(index + shift, 0), len(cases) - 1)]  # the outermost slices stand for the missing ones
            links[folder / "images" / f"{case.name}_{channel:04d}.png"] = other.images[0]
        for link, file in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())
    return folder


def em(data: Path, work: Path, *, only: str | None, slices: Sequence[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Some slices are measured, the others train; scores at the threshold 0.5 and at the best one, as the challenge."""
    rows: dict[str, Any] = {}
    plain = data
    measured = [f"em_{number:02d}" for number in slices]
    others = "" if tuple(slices) == EM_SLICES else f", slices {' '.join(map(str, slices))}"
    for name, variant in EM_VARIANTS.items():
        if only is not None and only != name:
            continue
        data = with_neighbours(plain, work / "em_neighbours") if variant.get("neighbours") else plain
        dataset = open_dataset(data)
        cases = [case for case in dataset.cases if case.name in measured]
        interior = [np.asarray(read_volume(case.label).image[0]) > 0 for case in cases]
        changes = {**variant.get("changes", {}), "validation_cases": measured, **settings}
        minutes = variant.get("minutes")
        bundle = quality_planned.bundle(data, work / f"em_{minutes:g}", minutes) if minutes else variant["bundle"]
        run = work / f"em_{name}{others}".replace(",", "").replace(" ", "_")
        trained = train(bundle, data, run, changes=changes, presets=variant.get("presets", ()))
        for views, overrides in (PLANNED_VIEWS if minutes else VIEWS).items():
            folder = run / views.replace(" ", "_")
            options = {"output_dir": folder, "probabilities": True, "overwrite": True}
            predictor = Predictor(run, overrides=overrides, **options)
            pairs = [Pair(case.name, predictor.predict_case(case.images), case.label) for case in cases]
            summary = summarise(list(evaluate_pairs(pairs, labels=dataset.labels, em=True)))
            maps = [np.load(folder / f"{case.name}_prob.npy")[1] for case in cases]
            rows[f"{name}, {views}{others}"] = {
                **trained,
                "metrics": summary,
                "best_threshold": best_em_scores(maps, interior)._asdict(),
                "separated_cells": separated(maps, interior, variant["boundary"]),
            }
    return rows


def separated(maps: list[np.ndarray], interior: list[np.ndarray], boundary: float) -> dict[str, Any]:
    """Means over slices for cells by whole borders; a membrane is drawn round each and scored as the challenge does."""
    cells = [separate_cells(probability, boundary=boundary) for probability in maps]
    membranes = [find_boundaries(numbers, connectivity=1) for numbers in cells]
    slices = [em_scores(~drawn, ref, warping=False) for drawn, ref in zip(membranes, interior, strict=True)]
    rand, info = ([float(getattr(scores, name)) for scores in slices] for name in ("v_rand", "v_info"))
    return {"boundary": boundary, "v_rand": float(np.mean(rand)), "v_info": float(np.mean(info)), "v_rand_slices": rand}


TASKS = {
    "ensemble": (quality_planned.ensemble, (30.0,)),
    "few": (quality_planned.few, (8.0,)),
    "sts": (quality_planned.sts, (30.0,)),
}
"""Tasks that always plan, and their minutes."""


def measure_planned(given: argparse.Namespace) -> dict[str, Any]:
    """Rows of a task that plans first."""
    rows, minutes = TASKS.get(given.task, (quality_planned.hippocampus, (15.0, 30.0)))
    name = given.task if given.task in TASKS else f"{given.task}_planned"
    options = quality_planned.Options(
        data=given.data,
        work=given.work,
        results=given.results / f"quality_{name}.json",
        minutes=tuple(given.minutes or minutes),
        sizes=tuple(given.sizes),
        seeds=given.seeds,
        changes=parse_settings(given.set),
    )
    return quality_planned.measure(rows(options), options)


def main() -> None:
    """Parse, measure, write, print."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("medunet").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["hippocampus", "em", *TASKS])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--only", choices=list(EM_VARIANTS), help="em: one variant; other results stay")
    parser.add_argument("--slices", type=int, nargs="+", default=EM_SLICES, help="em: which are measured")
    parser.add_argument("--set", action="append", help="a value of the bundle, for a trial")
    planned = parser.add_argument_group("of the tasks that plan")
    planned.add_argument("--planned", action="store_true", help="hippocampus: by `medunet plan`")
    planned.add_argument("--minutes", type=float, nargs="+", help="of a training")
    planned.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20], help="few: numbers of cases")
    planned.add_argument("--seeds", type=int, default=3, help="few: how many")
    options = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    options.results.mkdir(parents=True, exist_ok=True)
    if options.planned or options.task in TASKS:
        rows = measure_planned(options)
    else:
        file = options.results / f"quality_{options.task}.json"
        some = options.only or tuple(options.slices) != EM_SLICES  # the other rows stay
        document = {"rows": {}, **(read_json(file) if some else {})}
        rows = (
            em(
                options.data,
                options.work,
                only=options.only,
                slices=options.slices,
                settings=parse_settings(options.set),
            )
            if options.task == "em"
            else hippocampus(options.data, options.work)
        )
        document["machine"] = document.get("machine") or machine()
        document["rows"] |= {name: {**row, "machine": machine()} if some else row for name, row in rows.items()}
        write_json(file, document)
    for name, row in rows.items():
        metrics = row["metrics"]
        how = f"{row['steps']} steps in {row['training_minutes']} min, " if "steps" in row else ""
        print(f"{name}: {how}mean Dice {metrics['mean_dice']:.4f}")
        for label, entry in metrics["classes"].items():
            dice = entry["scores"]["dice"]
            print(f"  {label}: Dice {dice['mean']:.4f} +- {dice['std']:.4f}")
        for key, values in metrics.get("em", {}).items():
            print(f"  {key}: {values['mean']:.5f}")
        if "best_threshold" in row:
            print(f"  at the best threshold: {row['best_threshold']}")
            print(f"  cells by whole borders: {row['separated_cells']}")
        if "cold_predict_seconds" in row:
            print(f"  medunet predict, one case, cold start: {row['cold_predict_seconds']:.1f} s")


if __name__ == "__main__":
    main()
