"""How well `predict --review` estimates the Dice, what it costs, and how many wrong labels an audit finds.

    python -m scripts.bench.review --run RUN --data DATA/Task04_Hippocampus --cases 32

RUN is a run of one fold. Half of its validation cases calibrate, the other half is reviewed: as it is, and with noise,
blur, a bias field, mirrored, with a wrong spacing in the header, and inverted.
"""

import argparse
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import LoadImaged
from scipy import ndimage
from scipy.stats import mannwhitneyu, spearmanr

from medunet.config import read_json
from medunet.datasets import datalist
from medunet.metrics import dice
from medunet.prediction import Predictor
from medunet.prediction.review import describe_case, fit_reviews, summarise_facts
from medunet.prediction.steps import steps_up_to
from medunet.runs.audit import diagnose
from medunet.runs.review import measure_case, read_reference

Image = npt.NDArray[np.float32]
LOW = 0.8  # Dice below which a case should be detected


def degraded(image: Image, affine: Any, name: str) -> Iterator[tuple[str, Image, Any]]:
    """Yield the kinds of images, each with its affine."""
    random = np.random.default_rng(zlib.crc32(name.encode()) + 1)
    yield "as it is", image, affine
    yield "noise", image + random.normal(0, 0.7 * image.std(), image.shape).astype(np.float32), affine
    yield "blur", ndimage.gaussian_filter(image, (0, 1.5, 1.5, 1.5)), affine
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in image.shape[1:]], indexing="ij")
    field = np.exp(sum(weight * axis for weight, axis in zip(random.normal(size=3), grid, strict=True)))
    yield "bias field", (image * field).astype(np.float32), affine
    yield "mirrored", image[:, :, ::-1].copy(), affine
    yield "wrong spacing", image, affine @ np.diag([1.6, 1.6, 1.6, 1])
    yield "inverted", image.max() - image, affine


def area(score: npt.NDArray[Any], is_low: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve of finding the low cases by a low score."""
    pairs = int(is_low.sum()) * int((~is_low).sum())
    return float(mannwhitneyu(score[~is_low], score[is_low]).statistic) / pairs if pairs else float("nan")


def corrupted(ref: npt.NDArray[Any], other: npt.NDArray[Any], kind: int) -> npt.NDArray[Any]:
    """Return a wrong label: swapped classes, one missing, shifted, mirrored, or that of another case."""
    if kind == 0:
        return np.where(ref == 1, 2, np.where(ref == 2, 1, ref))
    if kind == 1:
        return np.where(ref == 2, 0, ref)
    if kind == 2:
        return np.roll(ref, (4, 4, 0), (0, 1, 2))
    if kind == 3:
        return np.flip(ref, 1)
    wrong = np.zeros_like(ref)
    box = tuple(slice(0, min(sizes)) for sizes in zip(ref.shape, other.shape, strict=True))
    wrong[box] = other[box]
    return wrong


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = read_json(given.run / "configs" / "train.json")
    options = {key: config[key] for key in ("fold", "folds", "split") if key in config}
    items = datalist(given.data, section="validation", **options)[: given.cases]
    predictor = Predictor(given.run, device="cpu", probabilities=True, review=True, trust=True)
    names, steps = list(predictor.structures), predictor.preprocessing
    training = []
    for item in datalist(given.data, section="training", **options):
        image = steps({"image": item["image"]})["image"]
        training.append(describe_case(image, read_reference(predictor, image, item), predictor.structures))
    rows = [row for item in items[::2] for row in measure_case(predictor, item)]
    document = {**fit_reviews(rows, names), "training": summarise_facts(training)}
    assert predictor.reviewer is not None
    predictor.reviewer.calibration = document
    found: list[dict[str, Any]] = []
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for number, item in enumerate(items):
        read = steps({"image": item["image"]}, end=steps_up_to(steps, LoadImaged, last=True))["image"]
        ref, affine = read_reference(predictor, read, item), read.meta["original_affine"]
        for kind, image, changed in degraded(np.asarray(read), affine, str(item["name"])):
            result = predictor.decide_array(image, affine=changed)
            pred, review = np.asarray(result["pred"])[0].astype(int), result["review"]
            if kind == "as it is":
                pairs.append((pred, ref.astype(int)))
            if number % 2 == 0:
                break  # a calibration case, which only the audit needs
            truth = np.flip(ref, 1) if kind == "mirrored" else ref
            true = float(np.nanmean([dice(pred == of[0], truth == of[0]) for of in predictor.structures.values()]))
            found.append({"kind": kind, "true": true, **review.as_dict()})
    print("| images | Dice | expected | mean error | Spearman | in the 90 % interval | flagged |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    kinds = [*dict.fromkeys(one["kind"] for one in found)]
    for kind in [*kinds, "all"]:
        of = [one for one in found if kind in (one["kind"], "all")]
        true, expected = (np.array([one[key] for one in of]) for key in ("true", "expected_dice"))
        inside = np.mean([one["low"] <= one["true"] <= one["high"] for one in of])
        flagged = np.mean([bool(one["flags"]) for one in of])
        numbers = f"{true.mean():.3f} | {expected.mean():.3f} | {np.abs(true - expected).mean():.3f}"
        order = spearmanr([one["score"] for one in of], true)[0] if np.ptp(true) > 0 else float("nan")
        print(f"| {kind} | {numbers} | {order:.2f} | {100 * inside:.0f} % | {100 * flagged:.0f} % |")
    is_low = np.array([one["true"] < LOW for one in found])
    auroc = area(np.array([one["score"] for one in found]), is_low)
    print(f"AUROC of Dice < {LOW}: {auroc:.3f} ({is_low.sum()} of {len(found)})")
    seconds = []
    for review in (False, True):
        plain = Predictor(given.run, device="cpu", review=review, trust=True)
        plain.decide(items[0]["image"])
        begun = time.perf_counter()
        for item in items[:5]:
            plain.decide(item["image"])
        seconds.append((time.perf_counter() - begun) / 5)
    print(f"seconds per case: {seconds[0]:.2f} plain, {seconds[1]:.2f} with review")
    scores = []
    for number, (pred, ref) in enumerate(pairs):
        wrong = corrupted(ref, pairs[number - 1][1], number % 5) if number < 10 else ref
        scores.append((*diagnose(pred, wrong, predictor.structures), number))
    first = sorted(scores)[:15]
    print(f"audit: {sum(number < 10 for *_, number in first)} of 10 wrong labels among the first 15 of {len(pairs)}")
    print(json.dumps({number: cause for _, cause, number in first}))


if __name__ == "__main__":
    main()
