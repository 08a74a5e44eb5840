"""Labels that disagree suspiciously with the prediction of a network that was not trained on them."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medunet.bundle.read import read_own
from medunet.datasets import Finding, SegmentationDataset
from medunet.errors import ConfigError, DataError
from medunet.metrics import dice
from medunet.metrics.overlap import mean_of_known
from medunet.prediction import Pair, read_pair
from medunet.prediction.evaluation import label_maps
from medunet.runs.evaluate import class_values, structure_values
from medunet.runs.seen import EVALUATION

MIN_GAIN = 0.1  # of the mean Dice, by which a correction must bring the label closer to the prediction
DEVIATIONS = 4.5  # median absolute deviations below the median (3 standard deviations) at which a Dice is suspicious

Labels = npt.NDArray[np.integer]


def audit_labels(dataset: SegmentationDataset, run: Path) -> list[Finding]:
    """Compare labels with the predictions of `held_out_maps`; return the worst first.

    Raises:
        ConfigError: a run of objects.
        DataError: there are no predictions of these cases.
    """
    config, maps, found = read_own(run, "evaluate"), held_out_maps(run), []
    labels = class_values(config)
    structures = structure_values(config)
    for case in dataset.cases:
        if case.label is not None and case.name in maps:
            volumes = read_pair(Pair(case.name, maps[case.name], case.label, case.images[0]), labels)
            pred, ref = (np.asarray(volume.image[0]).astype(np.int64) for volume in volumes)
            if dataset.ignore is not None:
                pred[ref == dataset.ignore] = ref[ref == dataset.ignore] = 0
            found.append((*diagnose(pred, ref, structures), case.name, str(case.label)))
    if not found:
        remedy = f"run `medunet evaluate {run} --data {dataset.root}`, or pass a cross-validation"
        raise DataError("the run has no predictions of these cases", file=run, remedy=remedy)
    values = np.array([score for score, *_ in found])
    limit = np.median(values) - DEVIATIONS * np.median(np.abs(values - np.median(values)))
    return [
        Finding("warning", file, f"{name}: Dice {score:.2f} with its prediction, {cause or 'cause unknown'}", case=name)
        for score, cause, name, file in sorted(found)
        if score < limit
    ]


def held_out_maps(run: Path) -> dict[str, Path]:
    """Return the predictions of a cross-validation, or of `medunet evaluate`, by case; ConfigError for objects."""
    if read_own(run, "evaluate").get("instances"):
        raise ConfigError("an audit is for classes, and this run predicts objects", file=run)
    folders = sorted(run.glob("fold_*/predictions")) or [run / EVALUATION / "predictions"]
    return {name: path for folder in folders if folder.is_dir() for name, path in label_maps(folder).items()}


def diagnose(pred: Labels, ref: Labels, structures: Mapping[str, Sequence[int]]) -> tuple[float, str]:
    """Return the mean Dice, and the correction that brings the label closest to the prediction."""

    def score(label: Labels) -> float:
        mean = mean_of_known(dice(np.isin(pred, of), np.isin(label, of)) for of in structures.values())
        return 1.0 if np.isnan(mean) else mean

    usual, axes = score(ref), range(ref.ndim)
    for name, of in structures.items():
        sizes = [int(np.isin(one, of).sum()) for one in (pred, ref)]
        if min(sizes) == 0 < max(sizes):
            return usual, f"{name} may be missing in the {'label' if sizes[0] else 'prediction'}"
    tried = {f"the label may be mirrored along axis {axis}": score(np.flip(ref, axis)) for axis in axes}
    for (one, [first, *_]), (other, [second, *_]) in itertools.combinations(structures.items(), 2):
        swapped = np.where(ref == first, second, np.where(ref == second, first, ref))
        tried[f"{one} and {other} may be swapped"] = score(swapped)
    if pred.any() and ref.any():
        centres = [np.mean(np.nonzero(one), axis=1) for one in (pred, ref)]
        offset = np.round(centres[1] - centres[0]).astype(int)
        tried[f"the label may be shifted by {offset} voxels"] = score(np.roll(ref, -offset, axes))
    best = max(tried, key=lambda cause: tried[cause])
    return usual, best if tried[best] > usual + MIN_GAIN else ""
