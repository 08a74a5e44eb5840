"""The values by which objects follow from a network's output, chosen on cases that it was not trained on."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medunet.config import read_json, to_json
from medunet.files import write_atomically
from medunet.io import LoadLabeld
from medunet.metrics import add_counts, count_objects, object_scores
from medunet.prediction import Predictor
from medunet.resources import WORKFLOWS
from medunet.transforms import InstanceTarget, objects_from_maps
from medunet.transforms.instances import diameter_of
from medunet.trust import adopt

logger = logging.getLogger(__name__)

MAX_VOXELS = 4_000_000  # of the cases that the values are chosen on: about a minute for all candidates
MIN_GAIN = 1e-3  # mean average precision by which a value must beat the present one
SMOOTHING = (0.03, 0.06, 0.09, 0.12, 0.15, 0.2)  # smoothing to try, as shares of the median object's diameter
CANDIDATES = {
    "boundary": (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 0.9),
    "threshold": (0.3, 0.4, 0.5, 0.6, 0.7),
    "min_confidence": (0.0, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9),
}
SMALLEST = (1 / 32, 1 / 16, 1 / 8, 1 / 4)  # smallest sizes to try, as shares of the median object

ObjectCase = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]  # the network's maps and the reference objects


def choose_objects(
    cases: Sequence[ObjectCase], target: InstanceTarget, present: Mapping[str, Any]
) -> tuple[dict[str, Any], float, float]:
    """Find, one value after the other, the arguments of `objects_from_maps` with the highest mean average precision.

    Args:
        cases: maps and reference objects of each case, which the network was not trained on.
        target: what separates touching objects.
        present: the arguments to improve.

    Returns:
        The arguments, and the mean average precision before and after.
    """

    def score(values: Mapping[str, Any]) -> float:
        counts = [count_objects(objects_from_maps(maps, target, **values).numbers, ref) for maps, ref in cases]
        mean = object_scores(add_counts(counts))["mean_ap"]
        return 0.0 if np.isnan(mean) else mean

    sizes = np.concatenate([np.unique(ref[ref > 0], return_counts=True)[1] for _, ref in cases])
    chosen, best = dict(present), score(present)
    if not sizes.size:
        return chosen, best, best
    shares = [round(float(np.median(sizes)) * share) for share in SMALLEST]
    diameter = round(float(diameter_of(np.median(sizes), cases[0][1].ndim)), 1)
    smoothing: list[dict[str, Any]] = [
        {"smoothing": round(share * diameter, 2), "diameter": scaled}
        for scaled in (diameter, None)
        for share in SMOOTHING
    ]
    others: dict[str, Sequence[Any]] = {**CANDIDATES, "min_size": (0, *shares), "fill_holes": (True, False)}
    before = best
    for values in [smoothing, *([{name: value} for value in each] for name, each in others.items())]:
        tried = dict(chosen)
        for value in values:
            if (found := score(tried | value)) > best + MIN_GAIN:
                best, chosen = found, tried | value
    return chosen, before, best


def predict_maps(predictor: Predictor, items: Iterable[Mapping[str, Any]]) -> list[ObjectCase]:
    """Return the network's maps and the reference objects of labelled items, until they have `MAX_VOXELS`."""
    cases: list[ObjectCase] = []
    voxels = 0
    for item in items:
        if voxels >= MAX_VOXELS:
            break
        image = item["image"]
        found = predictor.decide(Path(image) if isinstance(image, str) else [Path(path) for path in image])
        label = LoadLabeld(instances=True)({"image": found["source"], "label": item["label"]})["label"][0]
        cases.append((np.array(found["prob"], dtype=np.float32), label.numpy()))
        voxels += label.numel()
    return cases


def fit_objects(bundle: Path, cases: Sequence[ObjectCase]) -> dict[str, Any]:
    """Choose the values of a bundle's id `objects` on cases, and write them into its configs."""
    config = read_json(bundle / "configs" / "inference.json")
    chosen, before, after = choose_objects(cases, config["instance_target"], config["objects"])
    logger.info("objects: %s; mean AP %.3f, was %.3f, on %d cases", chosen, after, before, len(cases))
    for name in WORKFLOWS:
        path = bundle / "configs" / f"{name}.json"
        write_atomically(path, to_json({**read_json(path), "objects": chosen}))
    adopt(bundle)
    return chosen
