"""Dice of runs on held-out volumes as they are and degraded: noise, blur, contrast, bias field, resampling, rotation.

    python -m scripts.bench.robustness RUN [RUN2 ...] --data DATA/Task04_Hippocampus [--cases 40]

The first run must have been trained; its fold and split select the held-out cases of all runs. A shipped model, such as
`bundles/hippocampus`, may follow. Degraded images have the grid of the file. Results are printed as a table and added
to scripts/results/robustness.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import LoadImaged
from scipy import ndimage

from medunet.datasets import datalist
from medunet.metrics import dice
from medunet.prediction import Predictor
from medunet.prediction.steps import steps_up_to
from medunet.runs.review import read_reference

from .measure import RESULTS, describe, machine, read_json, table, write_json
from .review import Image, degraded

SHARED = ("as it is", "noise", "blur", "bias field")
THICK = 4  # voxels that become one, along one axis
ANGLE = 15.0  # degrees
AXES = ((1, 2), (0, 2), (0, 1))


def variants(image: Image, ref: Any, affine: Any, number: int, name: str) -> Iterator[tuple[str, Image, Any]]:
    """Yield the kinds of images, each with its reference; axes alternate between cases."""
    yield from ((kind, changed, ref) for kind, changed, _ in degraded(image, affine, name) if kind in SHARED)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in image.shape[1:]], indexing="ij")
    weights = np.random.default_rng(number).uniform(-0.4, 0.4, 3)
    field = np.exp(sum(weight * axis for weight, axis in zip(weights, grid, strict=True)))
    yield "bias field, weak", (image * field).astype(np.float32), ref
    low, high = float(image.min()), float(image.max())
    for gamma in (0.5, 2.0):
        yield f"gamma {gamma:g}", low + (high - low) * ((image - low) / max(high - low, 1e-6)) ** gamma, ref
    axis = 1 + number % 3
    size = image.shape[axis]
    means = ndimage.uniform_filter1d(image, THICK, axis=axis, mode="nearest")
    places = np.arange(THICK // 2, size, THICK)
    target = np.clip((np.arange(size) - places[0]) / THICK, 0, len(places) - 1)
    below = np.minimum(target.astype(int), len(places) - 2)
    share = (target - below).reshape([-1 if k == axis else 1 for k in range(4)])
    thick = np.take(means, places, axis)
    between = np.take(thick, below, axis) * (1 - share) + np.take(thick, below + 1, axis) * share
    yield f"slices {THICK} times as thick", between.astype(np.float32), ref
    turn = {"angle": ANGLE, "axes": AXES[number % 3], "reshape": False, "mode": "nearest"}
    yield "rotated by 15 degrees", ndimage.rotate(image[0], order=1, **turn)[None], ndimage.rotate(ref, order=0, **turn)


def measure(run: Path, items: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the mean Dice of each case by the kind of image."""
    predictor = Predictor(run, device="cpu", trust=True)
    scores: dict[str, list[float]] = {}
    for number, item in enumerate(items):
        steps = predictor.preprocessing
        read = steps({"image": item["image"]}, end=steps_up_to(steps, LoadImaged, last=True))["image"]
        affine, ref = read.meta["original_affine"], read_reference(predictor, read, item)
        for kind, image, truth in variants(np.asarray(read, np.float32), ref, affine, number, str(item["name"])):
            pred = np.asarray(predictor.decide_array(image, affine=affine)["pred"])[0]
            values = [dice(np.isin(pred, of), np.isin(truth, of)) for of in predictor.structures.values()]
            scores.setdefault(kind, []).append(float(np.nanmean(values)))
    return scores


def main() -> None:
    """Measure the runs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = read_json(options.runs[0] / "configs" / "train.json")
    fold = {key: config[key] for key in ("fold", "folds", "split")}
    items = datalist(options.data, section="validation", **fold)[: options.cases]
    path, rows = RESULTS / "robustness.json", []
    results = read_json(path) or {"machine": machine(), "runs": {}}
    for run in options.runs:
        scores = measure(run, items)
        means = {kind: round(float(np.mean(values)), 4) for kind, values in scores.items()}
        results["runs"][run.name] = {"cases": len(items), "dice": means}
        rows.append(means)
        print(run.name, json.dumps(means), flush=True)
    write_json(path, results)
    print(describe(results["machine"]))
    print(
        table(["images", *[run.name for run in options.runs]], [[k, *[f"{r[k]:.3f}" for r in rows]] for k in rows[0]])
    )


if __name__ == "__main__":
    main()
