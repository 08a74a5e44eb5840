"""Calibration of the reviews of a bundle, and the tables and the page about reviewed cases."""

import logging
import math
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms import LoadImaged
from scipy import ndimage
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from medunet.bundle.read import read_own
from medunet.config import apply, get_id, read_json, strict_json, to_json
from medunet.datasets import datalist, open_as
from medunet.errors import DataError, MedunetError
from medunet.files import claim, write_atomically
from medunet.geometry import Geometry
from medunet.io import read_label, read_volume
from medunet.metrics import dice
from medunet.metrics.tables import rows_text
from medunet.prediction import Prediction, Predictor
from medunet.prediction.configuration import CALIBRATION, TEMPERATURE
from medunet.prediction.review import describe_case, fit_reviews, summarise_facts
from medunet.prediction.source import first_path, parts
from medunet.prediction.steps import steps_up_to
from medunet.reports import render_overlay
from medunet.reports.page import render_page
from medunet.runs.card import EXPECTED_DICE, write_section
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.runs.split import split_options
from medunet.trust import adopt, require_trust

logger = logging.getLogger(__name__)

MIN_CASES = 8  # with fewer cases a 90 % interval would be wider than the range of their Dice
MAX_TRAINING = 200  # training cases whose ranges are measured, evenly spaced
SAMPLE = 20_000  # voxels per case for the calibration of probabilities
MIN_GAIN = 1e-3  # share of the negative log-likelihood by which a temperature must lower it on other cases
TEMPERATURES = (0.25, 4.0)  # lowest and highest
BINS = 10  # of the reliability diagram
MAX_PICTURES = 40  # of the worst cases on the page
MODALITY = "network_data_format::inputs::image::modality"  # in metadata.json

Sample = tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.bool_]]  # logits `(voxels, classes)`, and the true class
Row = dict[str, Any]


def calibrate(run: Path, data: Path, *, device: str = "auto", trust: bool = False) -> dict[str, Any]:
    """Calibrate the reviews and the class probabilities of a run on labelled cases that it was not trained on.

    These are all cases of a cross-validation, each predicted by the fold that held it out, or the validation cases of a
    single run. A degraded copy of each case shows what a low agreement means. The result becomes part of the bundle:
    `docs/review.json`, a section of the README, and the temperature of `--probabilities` in the configs.

    Raises:
        ConfigError: a bundle of objects.
        DataError: fewer than `MIN_CASES` cases, or labels with ignored voxels.
    """
    require_trust(run, trust=trust)
    config, rows, facts = read_own(run, "evaluate"), [], []
    if (ignored := open_as(config, data, []).ignore) is not None:
        raise DataError("calibration needs labels of all voxels", file=data, received=f"ignored value {ignored}")
    is_joined = ENSEMBLE_FOLDS in config
    runs = {run / f"fold_{fold}": fold for fold in config[ENSEMBLE_FOLDS]} if is_joined else {run: config["fold"]}
    options = split_options(config)
    with claim(run):
        for part, fold in runs.items():
            predictor = Predictor(part, device=device, probabilities=True, review=True, trust=trust)
            for item in datalist(data, section="validation", fold=fold, **options):
                rows += measure_case(predictor, item)
                logger.info("calibration: %s", item["name"])
        if (count := len(rows) // 2) < MIN_CASES:
            raise DataError("too few held-out cases", file=data, received=count, expected=f"{MIN_CASES} or more")
        items = datalist(data, section="all" if is_joined else "training", fold=fold, **options)
        for item in [one for one in items if "label" in one][:: math.ceil(len(items) / MAX_TRAINING)]:
            image = predictor.preprocessing({"image": item["image"]})["image"]
            facts.append(describe_case(image, read_reference(predictor, image, item), predictor.structures))
        training, kind = summarise_facts(facts), get_id(read_json(run / "configs" / "metadata.json"), MODALITY)
        if kind in ("CT", "MR"):
            training.setdefault("modality", [kind])
        source = "out-of-fold cases" if is_joined else f"validation cases of fold {fold}"
        of = fit_temperature([row["sample"] for row in rows if "sample" in row])
        document = {"source": source, "cases": count, **fit_reviews(rows, list(predictor.structures))}
        document |= {"probabilities": of, "training": training}
        write_atomically(run / CALIBRATION, strict_json(document))
        for path in (run / "configs" / "inference.json", run / "configs" / "evaluate.json"):
            write_atomically(path, to_json(apply(read_json(path), {TEMPERATURE: of["temperature"]})))
        adopt(run)
        before, after = (of[key]["ece"] for key in ("before", "after"))
        about = f"""\
`medunet predict --review` is calibrated on {count} {source} and a degraded copy of each: mean error of the expected
Dice {document["error"]:.3f}. The temperature {of["temperature"]:.3g} changes the expected calibration error of
probabilities from {before:.4f} to {after:.4f}, on the cases that it was fitted on."""
        write_section(run, EXPECTED_DICE, about)
    return document


def measure_case(predictor: Predictor, item: Mapping[str, Any]) -> list[Row]:
    """Return agreement and true Dice of a labelled case, and of a degraded copy of it."""
    steps, rows, found = predictor.preprocessing, [], predictor.decide(item["image"])
    ref = read_reference(predictor, found["image"], item)
    read = steps({"image": item["image"]}, end=steps_up_to(steps, LoadImaged, last=True))["image"]
    worse = degrade(np.asarray(read), zlib.crc32(str(item["name"]).encode()))
    for one in (found, predictor.decide_array(worse, affine=read.meta["original_affine"])):
        pred = np.asarray(one["pred"])[0]
        scores = {name: dice(np.isin(pred, of), np.isin(ref, of)) for name, of in predictor.structures.items()}
        rows.append({"agreement": one["agreement"], "dice": scores})
    voxels, prob = np.random.default_rng(0).integers(ref.size, size=SAMPLE), np.asarray(found["prob"])
    prob, kinds = prob.reshape(len(prob), -1)[:, voxels].T, [[value] for value in predictor.label_values]
    kinds = [*predictor.structures.values()] if predictor.region_order else kinds
    true = np.stack([np.isin(ref.ravel()[voxels], of) for of in kinds], axis=1)
    if predictor.region_order:  # each region is a class of two
        prob, true = (np.stack(pair, axis=-1).reshape(-1, 2) for pair in ((1 - prob, prob), (~true, true)))
    rows[0]["sample"] = predictor.inferer.temperature * np.log(np.clip(prob, 1e-12, 1)), true
    return rows


def degrade(image: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    """Return a copy of an image `(C, *spatial)` with noise, blur or another contrast."""
    random = np.random.default_rng(seed)
    strength, kind = random.uniform(0.2, 1), random.integers(3)
    if kind == 0:
        return image + random.normal(0, strength * image.std(), image.shape).astype(np.float32)
    if kind == 1:
        return np.asarray(ndimage.gaussian_filter(image, (0, *[2 * strength] * (image.ndim - 1))))
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    share = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return np.asarray(low + (high - low) * share ** np.exp(random.choice([-1.5, 1.5]) * strength), np.float32)


def read_reference(predictor: Predictor, image: Any, item: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return the label of an item `(*spatial)` on the grid that its image was read on."""
    grid = Geometry(np.asarray(image.meta["original_affine"], np.float64), tuple(image.meta["spatial_shape"].tolist()))
    return np.asarray(read_label(item["label"], reference=grid, labels=predictor.classes).image.numpy()[0])


def fit_temperature(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the temperature with the lowest negative log-likelihood, and the reliability before and after.

    It is fitted on every second case, and 1 unless this also lowers the negative log-likelihood of the others.
    """
    first, others, joined = (
        tuple(np.concatenate(arrays) for arrays in zip(*some, strict=True))
        for some in (samples[::2], samples[1::2], samples)
    )

    def loss(temperature: float, logits: Any, true: Any) -> float:
        return float(-np.log(np.clip(softmax(logits / temperature, axis=1)[true], 1e-12, 1)).mean())

    best, final = (float(minimize_scalar(loss, bounds=TEMPERATURES, args=of).x) for of in (first, joined))
    before, after = loss(1, *others), loss(best, *others)
    temperature = final if after < before * (1 - MIN_GAIN) else 1.0
    curves = {key: reliability(joined[0] / one, joined[1]) for key, one in (("before", 1.0), ("after", temperature))}
    return {"temperature": temperature, "nll_before": before, "nll_after": min(before, after), **curves}


def reliability(logits: npt.NDArray[np.floating[Any]], true: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the expected calibration error (Guo et al., ICML 2017), and mean confidence, accuracy and share by bin."""
    probabilities, bins = softmax(logits, axis=1), []
    confidence, right = probabilities.max(axis=1), true[np.arange(len(true)), probabilities.argmax(axis=1)]
    numbers = np.minimum((confidence * BINS).astype(int), BINS - 1)
    for inside in (numbers == number for number in np.unique(numbers)):
        bins.append([float(confidence[inside].mean()), float(right[inside].mean()), float(inside.mean())])
    return {"ece": sum(share * abs(mean - of) for mean, of, share in bins), "bins": bins}


def write_reviews(output: Path, predictions: Sequence[Prediction], structures: Mapping[str, Sequence[int]]) -> Path:
    """Write `review.json`, `review.csv` and `review.html` beside results, worst first, and return the page.

    Args:
        output: folder of the results. Cases that were reviewed there before, and not now, keep their rows.
        predictions: their reviews and files.
        structures: the values of each structure by name, for the pictures; without any, all labels are alike.
    """
    file, pictures = output / "review.json", {}
    found = {one.review.case: (one, one.review.as_dict()) for one in predictions if one.review is not None}
    earlier = read_json(file)["cases"] if file.is_file() else []
    cases = [*(case for _, case in found.values()), *(case for case in earlier if case["case"] not in found)]
    cases.sort(key=lambda case: (case["score"], case["case"]))
    rows = [
        {"case": case["case"], "class": name, **values, "flags": "; ".join(case["flags"])}
        for case in cases
        for name, values in case["classes"].items()
    ]
    local = {name for name, (one, _) in found.items() if Path(first_path(one.source)).exists()}  # else in a store
    for name in [case["case"] for case in cases if case["case"] in local][:MAX_PICTURES]:
        try:
            pictures[name] = b64encode(_picture(found[name][0], structures or {"label": range(1, 256)})).decode()
        except MedunetError as error:  # such as an image that was moved meanwhile
            logger.warning("%s has no picture: %s", name, error.cause)
    title = f"Review of {len(cases)} case{'s' * (len(cases) != 1)}"
    text = render_page("review.html", title=title, cases=cases, pictures=pictures)
    write_atomically(file, strict_json({"cases": cases}))
    write_atomically(output / "review.csv", rows_text(rows))
    return write_atomically(output / "review.html", text)


def _picture(result: Prediction, structures: Mapping[str, Sequence[int]]) -> bytes:
    images, _ = parts(result.source)
    volume = read_volume([images] if isinstance(images, str) else images)
    values = {name: of[0] for name, of in structures.items()}
    labels = read_label(result.path or "", reference=volume.record.geometry, labels=values)
    affine = volume.record.geometry.affine if volume.record.is_placed else None
    return render_overlay(volume.image, labels.image[0], labels={"background": 0, **structures}, affine=affine)
