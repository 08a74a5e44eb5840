"""The demo: synthetic data, a short training run, an evaluation on unseen cases, a report; then a real image."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from medunet.config import read_json
from medunet.datasets import write_phantom_dataset
from medunet.files import write_atomically
from medunet.prediction import Predictor
from medunet.reports import render_objects
from medunet.resources import find_bundle
from medunet.runs.evaluate import evaluate_bundle
from medunet.runs.report import report_runs
from medunet.runs.seen import EVALUATION
from medunet.runs.train import train_bundle

logger = logging.getLogger(__name__)

TRAINING_CASES = 20
TEST_CASES = 6
SEED = 2015
EPOCHS = 40  # 480 steps

# changes to `unet_3d`: the phantoms are simple and small
DEMO_CHANGES: Mapping[str, Any] = {
    "network_def::channels": [8, 16, 32, 64],
    "steps_per_epoch": 12,
    "batch_size": 2,
    "folds": 10,
    "patch_size": [32, 32, 32],
}


def run_demo(output: Path, *, epochs: int | None = None, device: str = "auto") -> tuple[dict[str, float], int]:
    """Train `unet_3d` on CT-like phantoms, evaluate it on unseen ones, and number the nuclei in a real image.

    `output` gets `data`, `run`, `report.html` and `nuclei.png`; an interrupted demo is resumed.
    Returns the mean Dice of each organ and the number of nuclei.
    """
    data, run = output / "data", output / "run"
    logger.info("1/5 writing %d CT-like volumes to %s", TRAINING_CASES + TEST_CASES, data)
    write_phantom_dataset(data, kind="ct", cases=TRAINING_CASES, test_cases=TEST_CASES, seed=SEED)
    logger.info("2/5 training")
    config = run / "configs" / "train.json"
    planned = read_json(config).get("epochs") if config.is_file() else None
    if planned is not None and epochs not in (None, planned):
        shutil.rmtree(run)  # an earlier demo of another length cannot be resumed as this one
    epochs = epochs or planned or EPOCHS
    changes = {**DEMO_CHANGES, "epochs": epochs, "val_interval": max(1, epochs // 4)}
    train_bundle(find_bundle("unet_3d"), data, run, changes=changes, device=device, resume=config.is_file())
    logger.info("3/5 predicting and evaluating %d unseen volumes", TEST_CASES)
    summary = evaluate_bundle(run, data, run / EVALUATION, section="test", device=device)
    logger.info("4/5 drawing")
    report_runs([run], output / "report.html", data=data, title="medunet demo: five organs in CT-like volumes")
    logger.info("5/5 numbering the nuclei in a real tissue section with the model `nuclei`")
    nuclei = number_nuclei(output / "nuclei.png", device=device)
    return {name: entry["scores"]["dice"]["mean"] for name, entry in summary["classes"].items()}, nuclei


def number_nuclei(picture: Path, *, device: str) -> int:
    """Draw the nuclei that the model `nuclei` finds in a stained section of the colon, and return their number."""
    stain = rgb2hed(immunohistochemistry())[..., 0].T  # hematoxylin, which stains nuclei
    black, white = np.percentile(stain, (1, 99.8))
    image = 255 * np.clip((stain - black) / (white - black), 0, 1).astype(np.float32)
    numbers = np.asarray(Predictor("nuclei", device=device).decide_array(np.stack([image] * 3))["pred"][0], np.int32)
    write_atomically(picture, render_objects(image, numbers))
    return int(numbers.max())
