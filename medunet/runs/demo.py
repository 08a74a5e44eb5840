"""The demo: synthetic data, a short training run, an evaluation on unseen cases, a report."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunet.config import read_json
from medunet.datasets import write_phantom_dataset
from medunet.resources import find_bundle
from medunet.runs.evaluate import evaluate_bundle
from medunet.runs.report import report_runs
from medunet.runs.seen import EVALUATION
from medunet.runs.train import train_bundle

logger = logging.getLogger(__name__)

TRAINING_CASES = 20
TEST_CASES = 6
SEED = 2015

# changes to `unet_3d` for a training run of three minutes on two laptop cores
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


def run_demo(output: Path, *, epochs: int | None = None, device: str = "auto") -> dict[str, float]:
    """Train `unet_3d` on CT-like phantoms, evaluate it on unseen ones, and return the mean Dice of each organ.

    `output` gets `data`, `run` and `report.html`; an interrupted demo is resumed.
    """
    data, run = output / "data", output / "run"
    logger.info("1/4 writing %d CT-like volumes to %s", TRAINING_CASES + TEST_CASES, data)
    write_phantom_dataset(data, kind="ct", cases=TRAINING_CASES, test_cases=TEST_CASES, seed=SEED)
    logger.info("2/4 training")
    changes = dict(DEMO_CHANGES) | ({} if epochs is None else {"epochs": epochs})
    config = run / "configs" / "train.json"
    if config.is_file() and read_json(config).get("epochs") != changes["epochs"]:
        shutil.rmtree(run)  # an earlier demo of another length cannot be resumed as this one
    train_bundle(find_bundle("unet_3d"), data, run, changes=changes, device=device, resume=config.is_file())
    logger.info("3/4 predicting and evaluating %d unseen volumes", TEST_CASES)
    summary = evaluate_bundle(run, data, run / EVALUATION, section="test", device=device)
    logger.info("4/4 drawing")
    report_runs([run], output / "report.html", data=data, title="medunet demo: five organs in CT-like volumes")
    return {name: entry["scores"]["dice"]["mean"] for name, entry in summary["classes"].items()}
