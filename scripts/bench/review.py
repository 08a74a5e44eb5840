"""How well `predict --review` estimates the Dice, what it costs, and how many wrong labels an audit finds.

    python -m scripts.bench.review --run RUN --data DATA
    python -m scripts.bench.review --run RUN --held-out OTHER_DATA

The first form calibrates on a part of the validation cases and reviews the others: the two halves of a run in turn,
each fold of a cross-validation with the calibration of the other folds. The second form reviews other cases with the
calibration that RUN has. Cases are reviewed as they are, and with noise, blur, a bias field, mirrored, with a wrong
spacing in the header, and inverted. Times are processor times. The table is printed and written to
scripts/results/review.json.
"""

import argparse
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

from medunet.datasets import datalist
from medunet.metrics import dice
from medunet.prediction import Predictor
from medunet.prediction.review import describe_case, fit_reviews, summarise_facts
from medunet.prediction.steps import steps_up_to
from medunet.runs.audit import diagnose
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.runs.review import measure_case, read_reference

from .measure import RESULTS, machine, read_json, table, write_json

Image = npt.NDArray[np.float32]
Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # predicted and reference label map
HEAD = ("images", "Dice", "expected", "mean error", "Spearman", "in the 90 % interval", "flagged")
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


def review_case(predictor: Predictor, item: dict[str, Any], pairs: list[Pair]) -> list[dict[str, Any]]:
    """Return true Dice and review of a case and of its degraded copies; its two label maps are added to `pairs`."""
    steps, found = predictor.preprocessing, []
    read = steps({"image": item["image"]}, end=steps_up_to(steps, LoadImaged, last=True))["image"]
    ref = read_reference(predictor, read, item).astype(int)
    for kind, image, affine in degraded(np.asarray(read), read.meta["original_affine"], str(item["name"])):
        result = predictor.decide_array(image, affine=affine)
        pred, truth = np.asarray(result["pred"])[0].astype(int), np.flip(ref, 1) if kind == "mirrored" else ref
        scores = [dice(np.isin(pred, of), np.isin(truth, of)) for of in predictor.structures.values()]
        found.append({"kind": kind, "true": float(np.nanmean(scores)), **result["review"].as_dict()})
        if kind == "as it is":
            pairs.append((pred, ref))
    print(item["name"], [round(one["true"], 2) for one in found], flush=True)
    return found


def review_each_other(
    run: Path, data: Path, cases: int | None, pairs: list[Pair]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Review each fold, or each half of the validation cases of a run, with the calibration of the others.

    Returns:
        The cases, and what `review_case` returns of them.
    """
    config = read_json(run / "configs" / "evaluate.json")
    is_joined = ENSEMBLE_FOLDS in config
    options: dict[str, Any] = {key: config[key] for key in ("folds", "split", "skip_cases") if key in config}
    options |= {} if is_joined else {"validation_cases": config["validation_cases"]}
    groups = []
    for fold in config[ENSEMBLE_FOLDS] if is_joined else [config["fold"]]:
        folder = run / f"fold_{fold}" if is_joined else run
        predictor = Predictor(folder, device="cpu", probabilities=True, review=True, trust=True)
        items = datalist(data, section="validation", fold=fold, **options)[:cases]
        groups += [(predictor, part) for part in ([items] if is_joined else [items[::2], items[1::2]])]
    rows = [[row for item in items for row in measure_case(predictor, item)] for predictor, items in groups]
    facts: dict[str, Any] = {}
    for item in datalist(data, section="all" if is_joined else "training", fold=fold, **options):
        image = predictor.preprocessing({"image": item["image"]})["image"]
        facts[str(item["name"])] = describe_case(image, read_reference(predictor, image, item), predictor.structures)
    found = []
    for own, (predictor, items) in enumerate(groups):
        others = [row for number, some in enumerate(rows) if number != own for row in some]
        unseen = {item["name"] for item in items}
        training = summarise_facts([some for name, some in facts.items() if name not in unseen])
        assert predictor.reviewer is not None
        predictor.reviewer.calibration = {**fit_reviews(others, list(predictor.structures)), "training": training}
        found += [one for item in items for one in review_case(predictor, item, pairs)]
    return [item for _, items in groups for item in items], found


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="that the run was trained on")
    source.add_argument("--held-out", type=Path, metavar="DATA", help="cases to review with the run's own calibration")
    parser.add_argument("--cases", type=int, help="only so many, of each fold")
    parser.add_argument("--name", help="of the results; default: the name of RUN")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pairs: list[Pair] = []
    if given.held_out:
        predictor = Predictor(given.run, device="cpu", probabilities=True, review=True, trust=True)
        items = datalist(given.held_out, section="all")[: given.cases]
        found = [one for item in items for one in review_case(predictor, item, pairs)]
    else:
        items, found = review_each_other(given.run, given.data, given.cases, pairs)
    rows = []
    for kind in [*dict.fromkeys(one["kind"] for one in found), "all"]:
        of = [one for one in found if kind in (one["kind"], "all")]
        true, expected = (np.array([one[key] for one in of]) for key in ("true", "expected_dice"))
        order = spearmanr([one["score"] for one in of], true)[0] if np.ptp(true) > 0 else float("nan")
        shares = ([one["low"] <= one["true"] <= one["high"] for one in of], [bool(one["flags"]) for one in of])
        means = (f"{one:.2f}" for one in (true.mean(), expected.mean(), np.abs(true - expected).mean(), order))
        rows.append([kind, *means, *(f"{100 * np.mean(share):.0f} %" for share in shares)])
    print(table(HEAD, rows))
    is_low = np.array([one["true"] < LOW for one in found])
    auroc = area(np.array([one["score"] for one in found]), is_low)
    seconds = []
    for review in (False, True):
        plain = Predictor(given.run, device="cpu", review=review, trust=True)
        plain.decide(items[0]["image"])
        begun = time.process_time()
        for item in items[:5]:
            plain.decide(item["image"])
        seconds.append((time.process_time() - begun) / 5)
    scores = []
    for number, (pred, ref) in enumerate(pairs):
        wrong = corrupted(ref, pairs[number - 1][1], number % 5) if number < 10 else ref
        scores.append((*diagnose(pred, wrong, plain.structures), number))
    first = sorted(scores)[:15]
    numbers = {"auroc": auroc, "low": int(is_low.sum()), "images": len(found)}
    numbers |= {"seconds": seconds[0], "seconds with review": seconds[1]}
    numbers |= {"wrong labels among the first 15": sum(number < 10 for *_, number in first), "labels": len(pairs)}
    print(numbers, {number: cause for _, cause, number in first})
    document = read_json(RESULTS / "review.json")
    document[given.name or given.run.name] = {"rows": rows, **numbers, "machine": machine()}
    write_json(RESULTS / "review.json", document)


if __name__ == "__main__":
    main()
