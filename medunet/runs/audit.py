"""Labels that disagree suspiciously with the prediction of a network that was not trained on them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medunet.bundle.read import read_own
from medunet.datasets import Finding, SegmentationDataset
from medunet.errors import DataError
from medunet.metrics import dice
from medunet.prediction import Pair, read_pair
from medunet.prediction.evaluation import label_maps
from medunet.runs.evaluate import class_values, region_values
from medunet.runs.seen import EVALUATION

MIN_GAIN = 0.1  # of the mean Dice, by which a correction must bring the label closer to the prediction
DEVIATIONS = 3.0  # robust standard deviations below the median at which a Dice is suspicious
MAD_TO_STD = 1.4826  # of a normal distribution

Labels = npt.NDArray[np.integer]


def audit_labels(dataset: SegmentationDataset, run: Path) -> list[Finding]:
    """Compare labels with the predictions of a cross-validation, or of `medunet evaluate`; return the worst first.

    Raises:
        DataError: there are no predictions of cases that the run was not trained on.
    """
    config, found = read_own(run, "evaluate"), []
    folders = sorted(run.glob("fold_*/predictions")) or [run / EVALUATION / "predictions"]
    maps = {name: path for folder in folders if folder.is_dir() for name, path in label_maps(folder).items()}
    labels = class_values(config)
    structures = region_values(config) or {name: [value] for name, value in [*labels.items()][1:]}
    for case in dataset.cases:
        if case.label is not None and case.name in maps:
            volumes = read_pair(Pair(case.name, maps[case.name], case.label, case.images[0]), labels)
            pred, ref = (np.asarray(volume.image[0]).astype(np.int64) for volume in volumes)
            found.append((*diagnose(pred, ref, structures), case.name, str(case.label)))
    if not found:
        remedy = f"run `medunet evaluate {run} --data {dataset.root}`, or pass a cross-validation"
        raise DataError("the run has no predictions of these cases", file=run, remedy=remedy)
    values = np.array([score for score, *_ in found])
    limit = np.median(values) - DEVIATIONS * MAD_TO_STD * np.median(np.abs(values - np.median(values)))
    return [
        Finding("warning", file, f"{name}: Dice {score:.2f} with its prediction, {cause or 'cause unknown'}", case=name)
        for score, cause, name, file in sorted(found)
        if score < limit
    ]


def diagnose(pred: Labels, ref: Labels, structures: Mapping[str, Sequence[int]]) -> tuple[float, str]:
    """Return the mean Dice, and the correction of the reference that brings it closest to the prediction.

    Examples:
        >>> pred = np.array([[1, 1, 0, 2, 2, 0]])
        >>> diagnose(pred, np.array([[2, 2, 0, 1, 1, 0]]), {"a": [1], "b": [2]})
        (0.0, 'a and b may be swapped')
    """
    usual = _mean_dice(pred, ref, structures)
    for name, of in structures.items():
        sizes = [int(np.isin(one, of).sum()) for one in (pred, ref)]
        if min(sizes) == 0 < max(sizes):
            return usual, f"{name} may be missing in the {'label' if sizes[0] else 'prediction'}"
    tried = {cause: _mean_dice(pred, other, structures) for cause, other in _corrected(pred, ref, structures)}
    best = max(tried, key=lambda cause: tried[cause], default="")
    return usual, best if best and tried[best] > usual + MIN_GAIN else ""


def _corrected(pred: Labels, ref: Labels, structures: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Labels]]:
    """Yield corrections of a reference, and what they would mean."""
    for (one, [first, *_]), (other, [second, *_]) in itertools.combinations(structures.items(), 2):
        swapped = np.where(ref == first, second, np.where(ref == second, first, ref))
        yield f"{one} and {other} may be swapped", swapped
    for axis in range(ref.ndim):
        yield f"the label may be mirrored along axis {axis}", np.flip(ref, axis)
    if pred.any() and ref.any():
        offset = [round(float(np.mean(a) - np.mean(b))) for a, b in zip(np.nonzero(pred), np.nonzero(ref), strict=True)]
        yield f"the label may be shifted by {-np.array(offset)} voxels", np.roll(ref, offset, range(ref.ndim))


def _mean_dice(pred: Labels, ref: Labels, structures: Mapping[str, Sequence[int]]) -> float:
    values = [dice(np.isin(pred, of), np.isin(ref, of)) for of in structures.values()]
    return 1.0 if np.isnan(values).all() else float(np.nanmean(values))
