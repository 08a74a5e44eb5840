"""Scores of a case, and statistics of the scores of many cases."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypedDict, cast

import numpy as np
import numpy.typing as npt
from typing_extensions import NotRequired

from medunet.errors import ConfigError, DataError

from .arrays import Array, ArrayOrTensor, as_pair, bounding_box, checked_spacing
from .em import em_scores
from .instances import add_counts, count_objects, lesion_scores, object_scores, scores_by_size
from .overlap import Status, count_voxels, dice_from_counts, iou_from_counts, mean_of_known, status_from_counts
from .paired import CONFIDENCE, RESAMPLES
from .surface import surface_distances

MM3_PER_ML = 1000.0
TOLERANCE_MM = 1.0  # of the normalised surface Dice; it should be the disagreement of annotators
BACKGROUND = "background"  # name of the background label; without it, value 0 is the background


class ClassScores(TypedDict):
    """Scores of one class in one case; volumes in 3D, areas in 2D. `medunet.metrics.overlap` explains NaN.

    A class of objects has the scores of :func:`medunet.metrics.object_scores` instead of distances and sizes.
    """

    status: Status
    dice: float
    iou: float
    hd95_mm: NotRequired[float]
    msd_mm: NotRequired[float]
    nsd: NotRequired[float]  # normalised surface Dice at the tolerance
    lesions_ref: NotRequired[int]  # the five scores of `medunet.metrics.lesion_scores`
    lesions_pred: NotRequired[int]
    lesions_fp: NotRequired[int]
    lesion_sensitivity: NotRequired[float]
    lesion_f1: NotRequired[float]
    volume_pred_ml: NotRequired[float]
    volume_ref_ml: NotRequired[float]
    area_pred_mm2: NotRequired[float]
    area_ref_mm2: NotRequired[float]
    size_error_percent: NotRequired[float]  # (prediction - reference) / reference
    size_abs_error_percent: NotRequired[float]


class CaseScores(TypedDict):
    """Scores of one case, ready for JSON except for NaN."""

    name: str
    mean_dice: float  # over the classes that occur in the reference or the prediction
    classes: dict[str, ClassScores]
    em: NotRequired[dict[str, float]]
    mean_ap: NotRequired[float]  # of objects: mean over the classes of their mean average precision
    objects: NotRequired[dict[str, dict[str, float]]]  # counts by class, which can be added


class ObjectSummary(TypedDict):
    """Scores of the objects of a class in all cases together (pooled), and by size of the objects."""

    pooled: dict[str, float]
    sizes: dict[str, dict[str, float]]


class Statistics(TypedDict):
    """Mean, median and sample standard deviation (NaN for one case) over the `n` cases that have the score.

    `low` and `high` are the ends of the 95 % interval of the mean: percentiles of its bootstrap over patients.
    """

    mean: float
    low: float
    high: float
    median: float
    std: float
    n: int


class ClassSummary(TypedDict):
    """Statistics of each score of a class, and the number of cases per status."""

    scores: dict[str, Statistics]
    status: dict[Status, int]


class Summary(TypedDict):
    """Statistics over cases."""

    cases: int
    tolerance_mm: NotRequired[float]  # of the normalised surface Dice
    subgroups: NotRequired[dict[str, dict[str, Statistics]]]  # mean Dice of the cases by column and value
    weakest: NotRequired[dict[str, str]]  # column and value of the subgroup with the lowest mean Dice
    mean_dice: float  # mean over classes of the mean over cases (nnU-Net's foreground mean)
    classes: dict[str, ClassSummary]
    em: NotRequired[dict[str, Statistics]]
    instances: NotRequired[bool]  # whether objects were compared
    mean_ap: NotRequired[float]  # mean over classes of the mean over cases
    objects: NotRequired[dict[str, ObjectSummary]]
    failed_cases: NotRequired[dict[str, str]]  # why cases could not be evaluated, by name
    section: NotRequired[str]  # which cases of the data set were evaluated: unseen, validation, all, test or training
    tta: NotRequired[str]  # test-time augmentation, if it was chosen for this evaluation
    trained_on: NotRequired[list[str] | None]  # evaluated cases of the training; None if the bundle does not record it
    left_out: NotRequired[list[str]]  # cases of the data set that were not evaluated, because they were trained on
    folder: NotRequired[str]  # of the tables; not part of them
    unit: NotRequired[str]  # of distances: mm, or px for pictures, which have no scale; not part of the tables


def evaluate_case(
    pred: ArrayOrTensor,
    ref: ArrayOrTensor,
    *,
    spacing_mm: Sequence[float],
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]] | None = None,
    em: bool | str = False,
    tolerance_mm: float = TOLERANCE_MM,
    name: str = "",
) -> CaseScores:
    """Compare a predicted label map with the reference, class by class.

    Args:
        pred: label map `(*spatial)` or `(1, *spatial)`, 2D or 3D, with the values of `labels`.
        ref: reference label map of the same shape.
        spacing_mm: distance between neighbouring voxels along each axis.
        labels: value by name, all values that occur. The background (see `BACKGROUND`) is not a class.
        regions: values of their union by name, for classes that overlap; they are scored instead of the labels.
        em: also compute the scores of the ISBI 2012 challenge (2D): the name of the class that is the cells'
            interior, or True if there is only one class.
        tolerance_mm: of the normalised surface Dice.
        name: the case's name, for tables.

    Raises:
        GeometryError: shapes or spacing do not match.
        DataError: a value is not in `labels`.
        ConfigError: no class in `labels`, or `em` for a 3D case or an ambiguous class.

    Examples:
        >>> ref = np.zeros((4, 4, 4), int)
        >>> ref[:2] = 1
        >>> pred = ref.copy()
        >>> pred[1] = 0
        >>> scores = evaluate_case(pred, ref, spacing_mm=(5, 1, 1), labels={"background": 0, "liver": 1})
        >>> round(scores["mean_dice"], 3), scores["classes"]["liver"]["hd95_mm"]
        (0.667, 5.0)
    """
    spatial_dims = len(spacing_mm)
    spacing = checked_spacing(spacing_mm, spatial_dims=spatial_dims)
    pred_array, ref_array = as_pair(pred, ref, spatial_dims=spatial_dims)
    background = labels.get(BACKGROUND, 0)
    values = {label: value for label, value in labels.items() if value != background}
    if not values:
        raise ConfigError("labels must have a class besides the background", received=dict(labels))

    # the box around all classes is a quarter of the volume of a chest CT
    box = bounding_box((pred_array != background) | (ref_array != background))
    pred_box, ref_box = (pred_array[box], ref_array[box]) if box else (pred_array[:0], ref_array[:0])
    _check_values(pred_box, labels=labels, of="prediction")
    _check_values(ref_box, labels=labels, of="reference")
    scored = regions or {label: (value,) for label, value in values.items()}
    classes = {label: _class_scores(pred_box, ref_box, union, spacing, tolerance_mm) for label, union in scored.items()}
    mean_dice = mean_of_known(entry["dice"] for entry in classes.values())
    scores = CaseScores(name=name, mean_dice=mean_dice, classes=classes)
    if em:
        interior = values[_interior_class(em, values=values, spatial_dims=spatial_dims)]
        em_values = em_scores(pred_array == interior, ref_array == interior)._asdict()
        scores["em"] = {key: float(value) for key, value in em_values.items() if value is not None}
    return scores


def evaluate_objects(
    pred: ArrayOrTensor,
    ref: ArrayOrTensor,
    *,
    labels: Mapping[str, int],
    pred_classes: Mapping[int, int] | None = None,
    ref_classes: Mapping[int, int] | None = None,
    name: str = "",
) -> CaseScores:
    """Compare predicted objects with the reference, class by class.

    Args:
        pred: object numbers `(*spatial)`, 2D or 3D; 0 is the background.
        ref: object numbers of the reference, of the same shape.
        labels: value by name of a class, background included.
        pred_classes: value of the class of each predicted object; None if there is only one class.
        ref_classes: value of the class of each reference object.
        name: the case's name, for tables.

    Raises:
        GeometryError: shapes differ.
        DataError: negative or fractional numbers.
        ConfigError: several classes, and objects without classes.
    """
    arrays = as_pair(pred, ref)
    foreground = {label: value for label, value in labels.items() if label != BACKGROUND and value != 0}
    if len(foreground) > 1 and (pred_classes is None or ref_classes is None):
        raise ConfigError("objects of several classes need the class of each object", received=", ".join(foreground))
    classes, counts = {}, {}
    for label, value in foreground.items():
        of_class = list(arrays)
        for index, class_of in enumerate((pred_classes, ref_classes)):
            if len(foreground) > 1 and class_of is not None:
                chosen = [number for number, class_ in class_of.items() if class_ == value]
                of_class[index] = np.where(np.isin(arrays[index], chosen), arrays[index], 0)
        counts[label] = count_objects(*of_class)
        voxels = count_voxels(*(array != 0 for array in of_class))
        pixels = {"dice": dice_from_counts(*voxels), "iou": iou_from_counts(*voxels)}
        scores = {"status": status_from_counts(*voxels[:2]), **pixels, **object_scores(counts[label])}
        classes[label] = cast("ClassScores", scores)
    mean_dice = mean_of_known(entry["dice"] for entry in classes.values())
    mean_ap = mean_of_known(float(entry["mean_ap"]) for entry in classes.values())  # type: ignore[typeddict-item] # of objects
    return CaseScores(name=name, mean_dice=mean_dice, mean_ap=mean_ap, classes=classes, objects=counts)


def summarise(results: Sequence[CaseScores], *, groups: Mapping[str, str] | None = None) -> Summary:
    """Return mean, median and standard deviation of each score over cases, and the overall mean Dice.

    NaN is left out (`medunet.metrics.overlap` explains why); `n` is the number of cases of a statistic, and `status`
    counts the cases in which a class is in both masks (`both`), `missed`, `spurious` or rightly `absent`.

    Args:
        results: what `evaluate_case` returned for each case; they may differ in their classes.
        groups: patient of each case by name, for the intervals; a case without one is a patient.
    """
    classes: dict[str, ClassSummary] = {}
    for label in dict.fromkeys(label for result in results for label in result["classes"]):
        having = [result for result in results if label in result["classes"]]
        entries = [result["classes"][label] for result in having]
        patients = [(groups or {}).get(result["name"], result["name"]) for result in having]
        keys = dict.fromkeys(key for entry in entries for key in entry if key != "status")
        status: dict[Status, int] = {"both": 0, "missed": 0, "spurious": 0, "absent": 0}
        for entry in entries:
            status[entry["status"]] += 1
        classes[label] = ClassSummary(
            scores={key: statistics([float(e.get(key, math.nan)) for e in entries], patients) for key in keys},  # type: ignore[arg-type] # never "status"
            status=status,
        )
    mean_dice = mean_of_known(entry["scores"]["dice"]["mean"] for entry in classes.values())
    summary = Summary(cases=len(results), mean_dice=mean_dice, classes=classes)
    em = [result["em"] for result in results if "em" in result]
    if em:
        summary["em"] = {key: statistics([entry.get(key, math.nan) for entry in em]) for key in em[0]}
    if objects := [result["objects"] for result in results if "objects" in result]:
        summary["instances"] = True
        summary["mean_ap"] = mean_of_known(entry["scores"]["mean_ap"]["mean"] for entry in classes.values())
        pooled = {label: add_counts(counts[label] for counts in objects if label in counts) for label in classes}
        summary["objects"] = {
            label: ObjectSummary(pooled=object_scores(counts), sizes=scores_by_size(counts))
            for label, counts in pooled.items()
        }
    return summary


def _class_scores(
    pred: Array, ref: Array, values: Sequence[int], spacing_mm: tuple[float, ...], tolerance_mm: float
) -> ClassScores:
    """Score the union of some values in two label maps."""
    pred_mask, ref_mask = (
        labels == values[0] if len(values) == 1 else np.isin(labels, values) for labels in (pred, ref)
    )
    counts = count_voxels(pred_mask, ref_mask)
    distances = surface_distances(pred_mask, ref_mask, spacing_mm=spacing_mm)
    scores = ClassScores(
        status=status_from_counts(*counts[:2]),
        dice=dice_from_counts(*counts),
        iou=iou_from_counts(*counts),
        hd95_mm=distances.hausdorff(),
        msd_mm=distances.mean(),
        nsd=0.0 if any(counts[:2]) and not all(counts[:2]) else distances.share_within(tolerance_mm),
    )
    in_pred, in_ref = (count * math.prod(spacing_mm) for count in counts[:2])
    if len(spacing_mm) == 3:
        scores["volume_pred_ml"], scores["volume_ref_ml"] = in_pred / MM3_PER_ML, in_ref / MM3_PER_ML
    else:
        scores["area_pred_mm2"], scores["area_ref_mm2"] = in_pred, in_ref
    error = 100 * (in_pred - in_ref) / in_ref if in_ref else math.nan
    scores["size_error_percent"], scores["size_abs_error_percent"] = error, abs(error)
    return cast("ClassScores", {**scores, **lesion_scores(pred_mask, ref_mask)})


def _check_values(array: Array, *, labels: Mapping[str, int], of: str) -> None:
    """Reject a label map with a value that no label has: it would silently count as background."""
    known = set(labels.values())
    if sum(int(np.count_nonzero(array == value)) for value in known) != array.size:
        unknown = sorted(set(np.unique(array).tolist()) - known)
        raise DataError(f"{of} has values that no label names", received=unknown, expected=sorted(known))


def _interior_class(em: bool | str, *, values: Mapping[str, int], spatial_dims: int) -> str:
    if spatial_dims != 2:
        raise ConfigError("EM scores need 2D cases", received=f"{spatial_dims}D")
    if isinstance(em, str) and em in values:
        return em
    if em is True and len(values) == 1:
        return next(iter(values))
    raise ConfigError("em must name the class of the cells' interior", received=em, expected=f"one of {sorted(values)}")


def statistics(numbers: Sequence[float], groups: Sequence[str] | None = None) -> Statistics:
    """Return the statistics of a score; `groups` has the patient of each number. NaN is left out."""
    known = ~np.isnan(np.asarray(numbers, dtype=np.float64))
    values = np.asarray(numbers, dtype=np.float64)[known]
    if values.size == 0:
        return Statistics(mean=math.nan, low=math.nan, high=math.nan, median=math.nan, std=math.nan, n=0)
    patients = np.asarray(groups)[known] if groups is not None else np.arange(values.size)
    _, places = np.unique(patients, return_inverse=True)
    low = high = math.nan
    if (count := int(places.max()) + 1) > 1:
        weights = _resamples(count)
        means = (weights @ np.bincount(places, weights=values)) / (weights @ np.bincount(places))
        low, high = (float(end) for end in np.percentile(means, CONFIDENCE))
    std = float(values.std(ddof=1)) if values.size > 1 else math.nan
    mean, median = float(values.mean()), float(np.median(values))
    return Statistics(mean=mean, low=low, high=high, median=median, std=std, n=int(values.size))


@lru_cache(maxsize=8)
def _resamples(count: int) -> npt.NDArray[np.float64]:
    """Return how often each of `count` patients is drawn, in each row of a bootstrap."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
