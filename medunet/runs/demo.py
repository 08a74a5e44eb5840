"""The embedded default: made data, a short training, a measured result, a page to look at."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.datasets import Case, SegmentationDataset, open_dataset, write_phantom_dataset
from medunet.io import read_volume
from medunet.metrics import summarise, write_tables
from medunet.prediction import Pair, Predictor, evaluate_pairs
from medunet.reports import overlay_png
from medunet.resources import find_bundle
from medunet.runs.report import report_runs
from medunet.runs.results import EVALUATION
from medunet.runs.train import train_bundle

logger = logging.getLogger(__name__)

TRAINING_CASES = 20
TEST_CASES = 6
SEED = 2015

DEMO_CHANGES: Mapping[str, Any] = {
    "network_def::channels": [16, 32, 64, 128],
    "epochs": 40,
    "steps_per_epoch": 12,
    "batch_size": 2,
    "learning_rate": 0.005,
    "val_interval": 10,
    "folds": 10,
    "patch_size": [48, 48, 40],
}
"""Set for two laptop cores and three minutes; everything else is the bundle's own."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Args:
        run: the trained bundle.
        report: the HTML page.
        overlay: a picture of the worst test case.
        dice: mean Dice of every organ over the test cases.
        seconds: wall time by stage.
    """

    run: Path
    report: Path
    overlay: Path
    dice: dict[str, float]
    seconds: dict[str, float]


def run_demo(output: Path, *, epochs: int | None = None, device: str = "auto") -> DemoResult:
    """Train ``unet_3d`` on CT-like phantoms and measure it on phantoms that it has not seen.

    A demo that was stopped goes on where it was; a finished one is measured again.

    Args:
        output: folder for data, run and report.
        epochs: fewer for a quick look.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    seconds: dict[str, float] = {}
    begun = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal begun
        now = time.perf_counter()
        seconds[stage], begun = now - begun, now

    data, run = output / "data", output / "run"
    logger.info("1/4 making %d CT-like volumes in %s", TRAINING_CASES + TEST_CASES, data)
    write_phantom_dataset(data, kind="ct", cases=TRAINING_CASES, test_cases=TEST_CASES, seed=SEED)
    lap("data")

    logger.info("2/4 training")
    changes = dict(DEMO_CHANGES) | ({} if epochs is None else {"epochs": epochs})
    if _was_set_up_differently(run, changes["epochs"]):
        shutil.rmtree(run)
    train_bundle(find_bundle("unet_3d"), data, run, changes=changes, device=device, resume=True)
    lap("training")

    logger.info("3/4 predicting %d unseen volumes", TEST_CASES)
    dataset = open_dataset(data)
    predictor = Predictor(run, output_dir=run / EVALUATION / "predictions", device=device, overwrite=True)
    pairs = [
        Pair(case.name, predictor.predict_case(case.images[0]), _label(case), case.images[0]) for case in dataset.test
    ]
    lap("prediction")

    logger.info("4/4 measuring and drawing")
    scores = list(evaluate_pairs(pairs, labels=dataset.labels))
    summary = summarise(scores)
    write_tables(scores, run / EVALUATION, summary=summary)
    worst = min(scores, key=lambda score: score["mean_dice"])["name"]
    overlay = _draw(next(pair for pair in pairs if pair.name == worst), dataset, output / "overlay.png")
    lap("measuring")
    title = "medunet demo: five organs in CT-like volumes"
    report = report_runs([run], output / "report.html", data=data, title=title).page
    lap("report")
    dice = {name: entry["scores"]["dice"]["mean"] for name, entry in summary["classes"].items()}
    return DemoResult(run=run, report=report, overlay=overlay, dice=dice, seconds=seconds)


def _label(case: Case) -> Path:
    if case.label is None:  # the phantom writer lists them
        raise FileNotFoundError(case.name)
    return case.label


def _was_set_up_differently(run: Path, epochs: int) -> bool:
    """Whether the folder holds an earlier demo of another length, which cannot be resumed as this one."""
    config = run / "configs" / "train.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("epochs") != epochs


def _draw(pair: Pair, dataset: SegmentationDataset, path: Path) -> Path:
    image, pred, ref = (read_volume(file).image for file in (pair.image or pair.pred, pair.pred, pair.ref))
    return overlay_png(image, pred, ref, path=path, labels=dataset.labels, title=pair.name)
