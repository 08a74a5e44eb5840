"""How far a result can be trusted: the expected Dice of each class, and what training never contained.

Agreement is the mean Dice between the label map of an image and those of its views (compare Zenk et al., Medical Image
Analysis 2025): mirrored as in training, and enlarged. The members of an ensemble share the views. A line from
agreement to Dice is fitted on held-out cases, with intervals by split conformal prediction (Lei et al., JASA 2018).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from medunet.config import read_json
from medunet.errors import ConfigError
from medunet.geometry import Geometry
from medunet.inferers import SourceGridInferer
from medunet.inferers.restore import decide
from medunet.inferers.views import LINEAR_MODES, ViewInferer, resized
from medunet.metrics.overlap import dice_from_counts, mean_of_known
from medunet.runtime import EnsembleLogits, autocast
from medunet.transforms import plain, swapped_channels

from .configuration import CALIBRATION
from .device import infer

if TYPE_CHECKING:
    from .predictor import Predictor

VIEW_SCALE = 1.15  # of the enlarged view; the smaller one of the scales of `--tta views`
MOST = 256  # class indices of a label map
PERCENTILES = (1, 25, 50, 75, 99)  # of the network's input, which describe the distribution of its intensities
SAMPLE_VOXELS = 1e6  # that percentiles are computed from
TOLERANCE = 0.1  # share by which sizes may be outside the range of training without a flag
INTENSITY_TOLERANCE = 0.25  # the same for percentiles of intensity, as a share of the range's width
COVERAGE = 0.9  # of the intervals
FLOOR = 0.02  # smallest scale of an interval: even perfect agreement leaves this error of annotators
SLOPES = (1.0, 3.0)  # of the line from agreement to Dice; mild degradations alone make it too flat

Array = npt.NDArray[Any]
Facts = dict[str, Any]  # of a case: words, and lists of numbers, by what they are


@dataclass(frozen=True)
class Review:
    """How far the result of a case can be trusted; the numbers are means over its classes, or None if not known."""

    case: str  # name of the result
    agreement: float | None
    expected_dice: float | None  # None without calibration
    low: float | None  # ends of its 90 % interval
    high: float | None
    classes: dict[str, dict[str, float | None]]  # the same four of each class or region
    flags: tuple[str, ...] = ()  # what the training cases never had

    def __str__(self) -> str:
        """Return a phrase such as 'expected Dice 0.71 to 0.94, 1 flag'."""
        known = "unknown" if self.low is None else f"{self.low:.2f} to {self.high:.2f}"
        count = len(self.flags)
        return f"expected Dice {known}" + (f", {count} flag{'s' * (count != 1)}" if count else "")

    @property
    def is_calibrated(self) -> bool:
        """Whether the bundle has a calibration."""
        return self.expected_dice is not None

    @property
    def score(self) -> float:
        """The number by which cases are ordered: the expected Dice, or the agreement without calibration."""
        return next((value for value in (self.expected_dice, self.agreement) if value is not None), 1.0)

    def is_below(self, threshold: float) -> bool:
        """Return whether the expected Dice of a class, or its agreement without calibration, is below a threshold."""
        values = (one["expected_dice" if self.is_calibrated else "agreement"] for one in self.classes.values())
        return any(value is not None and value < threshold for value in values)

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {**asdict(self), "score": self.score}


@torch.inference_mode()
def measure_agreement(predictor: "Predictor", image: torch.Tensor) -> dict[str, float]:
    """Return the agreement on a preprocessed image `(C, *spatial)` by structure; one that no view has is left out."""
    inferer, batch, size = predictor.inferer, plain(image)[None], list(image.shape[1:])
    while isinstance(inferer, SourceGridInferer | ViewInferer):
        inferer = inferer.inferer
    is_objects = getattr(predictor.inferer, "activation", "softmax") == "sigmoid" and not predictor.region_order
    indices = {value: index for index, value in enumerate(predictor.label_values)}

    def labels(network: torch.nn.Module, axis: int | None = None, scale: float = 1.0) -> torch.Tensor:
        flip = [] if axis is None else [2 + axis]
        view = resized(batch.flip(flip), [max(1, round(n * scale)) for n in size])
        with autocast(predictor.device, predictor.autocast_dtype):
            logits = torch.as_tensor(infer(inferer, view[0], network, predictor.device)).float().flip(flip)
        if list(logits.shape[2:]) != size:
            logits = interpolate(logits, size, mode=LINEAR_MODES[len(size)])
        if axis == 0 and predictor.mirror_swaps:
            logits = logits[:, swapped_channels(predictor.mirror_swaps, logits.shape[1])]
        if is_objects:  # the last channel is a distance, the others are foreground classes
            logits = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)
        return decide(logits[0], order=predictor.region_order).cpu().long().ravel()

    ensemble = next((part for part in predictor.network.modules() if isinstance(part, EnsembleLogits)), None)
    members = [predictor.network] if ensemble is None else list(ensemble.members)
    views = [*((axis, 1.0) for axis in predictor.view_axes), (None, VIEW_SCALE)]
    found: dict[str, list[float]] = {}
    for number, member in enumerate(members):
        usual = labels(member)
        for axis, scale in views[number :: len(members)] or views[-1:]:
            pairs = torch.bincount(MOST * usual + labels(member, axis, scale), minlength=MOST**2).reshape(MOST, MOST)
            for name, values in (predictor.structures or {str(value): [value] for value in range(1, MOST)}).items():
                of = [indices.get(value, value) for value in values]
                counts = pairs[of].sum(), pairs[:, of].sum(), pairs[of][:, of].sum()
                found.setdefault(name, []).append(dice_from_counts(*(int(count) for count in counts)))
    means = {name: mean_of_known(some) for name, some in found.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def describe_case(image: Any, labels: npt.NDArray[Any], structures: Mapping[str, Sequence[int]]) -> Facts:
    """Return facts about a preprocessed image and its label map `(*spatial)` on the grid of the file."""
    dims = labels.ndim
    grid = Geometry(np.asarray(image.meta["original_affine"], dtype=np.float64), labels.shape)
    along = np.argsort([int(np.abs(column).argmax()) for column in grid.direction.T[:dims]])  # to the right first
    spacing, size = np.array(grid.spacing_mm)[along], np.array(labels.shape)[along]
    step = max(1, round((image[0].numel() / SAMPLE_VOXELS) ** (1 / dims)))
    sample = np.asarray(plain(image).cpu(), np.float32)[(slice(None),) + (slice(None, None, step),) * dims]
    levels = np.percentile(sample.reshape(len(sample), -1), PERCENTILES, axis=1).T.ravel()
    facts: Facts = {"intensity percentiles": levels.tolist(), "field of view mm": (spacing * size).tolist()}
    if image.meta.get("is_placed", True):
        facts |= {"spacing mm": spacing.tolist(), "orientation": grid.axis_codes}
    if modality := image.meta.get("modality"):
        facts["modality"] = modality
    boxes = dict(enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1))
    for name, values in structures.items():
        sides = [*zip(*(box for value in values if (box := boxes.get(value)) is not None), strict=True)]
        box = tuple(slice(min(side.start for side in of), max(side.stop for side in of)) for of in sides)
        mask = np.isin(labels[box], values) if box else np.zeros(0, bool)
        facts[f"{name} size"] = [float(mask.sum() * spacing.prod())]
        if box:
            ends = zip(box, labels.shape, strict=True)
            touches = any(n > 1 and (side.start == 0 or side.stop == n) for side, n in ends)
            facts[f"{name} touches the border"] = "yes" if touches else "no"
            facts[f"{name} components"] = [float(ndimage.label(mask, np.ones((3,) * dims))[1])]
    return facts


def summarise_facts(cases: Sequence[Facts]) -> dict[str, list[Any]]:
    """Return the lowest and the highest row of each number, and the different words."""
    ranges: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for case in cases for key in case):
        rows = [case[key] for case in cases if key in case]
        is_word = isinstance(rows[0], str)
        ranges[key] = sorted(set(rows)) if is_word else [np.min(rows, axis=0).tolist(), np.max(rows, axis=0).tolist()]
    return ranges


def find_flags(facts: Facts, training: Mapping[str, list[Any]]) -> tuple[str, ...]:
    """Return what the training cases never had, one line each."""
    flags = []
    for key in [key for key in facts if key in training and facts[key] != "no"]:
        value, usual = facts[key], training[key]
        if isinstance(value, str):
            flags += [] if value in usual else [f"{key}: {value}; training had {', '.join(usual)}"]
            continue
        row, low, high = (np.array(one) for one in (value, *usual))
        margin = INTENSITY_TOLERANCE * (high - low) if "intensity" in key else TOLERANCE * np.abs(row)
        if ((row < low - margin) | (row > high + margin)).any():
            shown, *ends = (" x ".join(f"{one:.3g}" for one in some) for some in (row, low, high))
            flags.append(f"{key}: {shown}; training had {' to '.join(dict.fromkeys(ends))}")
    return tuple(flags)


class Reviewer:
    """Reviews the results of one bundle, with its calibration if it has one."""

    def __init__(self, bundle: Path, structures: Mapping[str, Sequence[int]]) -> None:
        file, self.structures = bundle / CALIBRATION, structures
        self.calibration: dict[str, Any] = read_json(file) if file.is_file() else {}
        if self.calibration and self.calibration.get("classes", {}).keys() != structures.keys():
            remedy = "rerun `medunet evaluate RUN --data DATA --calibrate`"
            raise ConfigError("the calibration does not fit the bundle", file=file, remedy=remedy)

    def review(self, item: Mapping[Any, Any], case: str) -> Review:
        """Return the review of a predicted item with its `agreement`, before it is written."""
        agreement, known, training = item["agreement"], self.calibration, self.calibration.get("training", {})
        facts, classes, line = {}, {}, {}
        if known:
            facts = describe_case(item["image"], np.asarray(plain(item["pred"]).cpu())[0], self.structures)
        flags = find_flags(facts, training)
        for name in self.structures or agreement:
            expected = None
            if known:
                line, (size,), (low, high) = known["classes"][name], *(of[f"{name} size"] for of in (facts, training))
                usual = float(np.clip(size, *low, *high))
                limit = dice_from_counts(size, usual, min(size, usual))  # most that a mask of a usual size can have
                if name in agreement or limit == 0:
                    expected = min(float(predict_dice(line, agreement.get(name, 0.0))), limit)
            classes[name] = {"agreement": agreement.get(name), **_interval(expected, line, flags)}
        means = {key: _mean([one[key] for one in classes.values()]) for key in ("agreement", "expected_dice")}
        ends = _interval(means["expected_dice"], known, flags)
        return Review(case, means["agreement"], **ends, classes=classes, flags=flags)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _interval(expected: float | None, known: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Return an expected Dice and its interval, which is wider for larger errors and has no lower end with flags."""
    if expected is None:
        return dict.fromkeys(("expected_dice", "low", "high"))
    width = known["quantile"] * max(1 - expected, FLOOR)
    low = 0.0 if flags else max(0.0, expected - width)
    return {"expected_dice": expected, "low": low, "high": min(1.0, expected + width)}


def predict_dice(line: Mapping[str, float], agreement: npt.ArrayLike) -> Array:
    """Return the expected Dice at an agreement."""
    return np.clip(line["intercept"] + line["slope"] * np.asarray(agreement), 0, 1)


def fit_reviews(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return the line from agreement to Dice of each class, and the quantiles of the intervals.

    Args:
        rows: `agreement` and true `dice` of each class, of held-out cases; after each its degraded copy, which only
            the slope is fitted on.
        names: of the classes.
    """
    true = np.array([[row["dice"][name] for row in rows] for name in names])
    expected, classes, numbers = np.full_like(true, np.nan), {}, np.arange(len(rows))
    half, original = numbers // 2 % 2, numbers % 2 == 0
    for name, y, found in zip(names, true, expected, strict=True):
        x, has = np.array([row["agreement"].get(name, 0.0) for row in rows]), ~np.isnan(y)
        for part in (half == 0, half == 1):  # the errors of each half are those of a line through the other one
            found[has & part] = predict_dice(_fit(x, y, original, has & ~part), x[has & part])
        classes[name] = {**_fit(x, y, original, has), **_errors(found[has & original], y[has & original])}
    has = ~np.isnan(true).all(axis=0) & original
    return {"classes": classes, **_errors(np.nanmean(expected[:, has], axis=0), np.nanmean(true[:, has], axis=0))}


def _fit(x: Array, y: Array, original: Array, part: Array) -> dict[str, float]:
    slope = float(np.clip(np.polyfit(x[part], y[part], 1)[0], *SLOPES)) if np.unique(x[part]).size > 1 else 1.0
    rest = (y - slope * x)[part & original]
    return {"slope": slope, "intercept": float(np.median(rest)) if len(rest) else 0.0}


def _errors(expected: Array, true: Array) -> dict[str, float]:
    """Return the quantile of the scaled errors that makes intervals cover 90 %, and the mean error."""
    if not len(true):  # a class that no held-out case has
        return {"quantile": 1.0, "error": math.nan}
    scaled = np.sort(np.abs(true - expected) / np.maximum(1 - expected, FLOOR))
    place = min(math.ceil(COVERAGE * (len(scaled) + 1)), len(scaled)) - 1
    return {"quantile": float(scaled[place]), "error": float(np.abs(true - expected).mean())}
