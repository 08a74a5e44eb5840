"""The choice of rules that clean label maps, on cases that the network was not trained on."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from medunet.metrics.evaluation import BACKGROUND
from medunet.metrics.overlap import dice_from_counts, mean_of_known
from medunet.transforms import Components, by_size, clean_regions, regions_within, values_outside

from .evaluation import Pair, read_pair
from .rules import ClassRule, by_region

MIN_GAIN = 1e-4  # mean Dice by which a rule must beat a plainer one; less is chance
ROUNDING = 1e-9  # smaller differences of Dice are rounding
MAX_SIZES = 48  # smallest sizes that are tried per class, at quantiles of the sizes that occur


class _Case(NamedTuple):
    """Components of one class in one case, or of a region (the first part) and the regions contained in it."""

    sizes: np.ndarray  # of each component, mm³ or mm²
    voxels: np.ndarray  # of each component, (parts, components)
    right: np.ndarray  # voxels that have the class in the reference, too, (parts, components)
    reference: np.ndarray  # voxels in the reference, (parts,)


def choose_rules(pairs: Iterable[Pair], labels: Mapping[str, int], *, ignore: int | None = None) -> list[ClassRule]:
    """Find for every class the rule that raises its mean Dice most; it is used if the gain exceeds `MIN_GAIN`.

    Args:
        pairs: predictions and references, each read once.
        labels: value by class name, in the order of the network's output, background included.
        ignore: value of reference voxels that do not count.

    Returns:
        One rule per class, without the background.
    """
    names = list(labels)
    background = labels.get(BACKGROUND, 0)
    cases: dict[str, list[_Case]] = {name: [] for name, value in labels.items() if value != background}
    for pair in pairs:
        predicted, reference, voxel_size = _read(pair, labels)
        for name, of_class in cases.items():
            mask = predicted == labels[name]
            counted = mask if ignore is None else mask & (reference != ignore)
            of_class.append(_case([counted], [reference == labels[name]], voxel_size))
    return [_best(of_class, ClassRule(name, names.index(name), labels[name])) for name, of_class in cases.items()]


def choose_region_rules(
    pairs: Sequence[Pair],
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]],
    *,
    order: Sequence[int],
    ignore: int | None = None,
) -> list[ClassRule]:
    """Find for every region the rule that raises its mean Dice most; it is used if the gain exceeds `MIN_GAIN`.

    A rule must not lower the mean Dice of the regions contained in its own. Larger regions are decided first, and
    smaller ones on the cleaned label maps: the reported gain is that of all rules together.

    Args:
        pairs: predictions and references, read once per region.
        labels: value by name, background included.
        regions: values of their union by name, in the order of the network's output.
        order: the value that each region is written with.
        ignore: value of reference voxels that do not count.

    Returns:
        One rule per region.
    """
    unions = list(regions.values())
    rules: dict[int, ClassRule] = {}
    for number in by_size(unions):
        parts = [unions[other] for other in (number, *regions_within(number, unions))]
        raw: list[_Case] = []
        cleaned: list[_Case] = []
        for pair in pairs:
            predicted, reference, voxel_size = _read(pair, labels)
            clean = clean_regions(predicted, by_region(rules.values()), unions, order=order, voxel_size=voxel_size)
            wanted = [np.isin(reference, values) for values in parts]
            for cases, image in ((raw, predicted), (cleaned, clean)):
                counted = image if ignore is None else np.where(reference == ignore, 0, image)
                cases.append(_case([np.isin(counted, values) for values in parts], wanted, voxel_size))
        removable = values_outside(number, unions, order) is not None
        plain = ClassRule(list(regions)[number], number, order[number])
        rules[number] = _best(cleaned, plain, raw=raw, removable=removable)
    return [rules[number] for number in range(len(unions))]


def _read(pair: Pair, labels: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the values of prediction and reference, and the size of a voxel."""
    pred, ref = read_pair(pair, labels)
    return np.asarray(pred.image[0]), np.asarray(ref.image[0]), math.prod(ref.record.geometry.spacing_mm)


def _case(pred: Sequence[np.ndarray], ref: Sequence[np.ndarray], voxel_size: float) -> _Case:
    """Count the components of masks, one mask per part; the first mask contains the others."""
    components = Components.of(pred[0])
    count = len(components.voxels) + 1

    def by_component(mask: np.ndarray) -> np.ndarray:
        return np.bincount(components.numbers[mask[components.box]], minlength=count)[1:]

    return _Case(
        sizes=components.voxels * voxel_size,
        voxels=np.stack([by_component(mask) for mask in pred]),
        right=np.stack([by_component(mask & wanted) for mask, wanted in zip(pred, ref, strict=True)]),
        reference=np.array([np.count_nonzero(mask) for mask in ref]),
    )


def _dice(cases: Sequence[_Case], *, keep_largest: bool = False, min_size: float = 0.0) -> np.ndarray:
    """Return the exact Dice of every part in every case under a rule, `(parts, cases)`."""
    scores = []
    for case in cases:
        keep = case.sizes >= min_size
        if keep_largest and len(case.sizes):
            keep &= np.arange(len(case.sizes)) == np.argmax(case.voxels[0])
        counts = zip(case.voxels[:, keep].sum(axis=1), case.reference, case.right[:, keep].sum(axis=1), strict=True)
        scores.append([dice_from_counts(*map(int, of_part)) for of_part in counts])
    return np.array(scores).reshape(len(scores), -1).T if scores else np.empty((1, 0))


def _candidates(cases: Sequence[_Case]) -> list[tuple[bool, float]]:
    """Return rules to try, plain ones first, with a smallest size between every two sizes that occur."""
    sizes = np.unique(np.concatenate([case.sizes for case in cases])) if cases else np.empty(0)
    between = np.sqrt(sizes[:-1] * sizes[1:])
    if len(between) > MAX_SIZES:
        between = np.quantile(between, np.linspace(0, 1, MAX_SIZES))
    chosen = sorted({float(f"{size:.4g}") for size in between})
    return [(True, 0.0), *((False, size) for size in chosen), *((True, size) for size in chosen)]


def _best(
    cases: Sequence[_Case], plain: ClassRule, *, raw: Sequence[_Case] | None = None, removable: bool = True
) -> ClassRule:
    """Complete a rule with the best choice; `raw` are the cases before all rules."""
    unchanged = _dice(cases)
    best, chosen = mean_of_known(unchanged[0]), (False, 0.0)
    for keep_largest, min_size in _candidates(cases) if removable else ():
        changed = _dice(cases, keep_largest=keep_largest, min_size=min_size)
        old_means, new_means = ([mean_of_known(of_part) for of_part in scores[1:]] for scores in (unchanged, changed))
        spoils = any(new < old - ROUNDING for new, old in zip(new_means, old_means, strict=True))
        if (mean := mean_of_known(changed[0])) > best + MIN_GAIN and not spoils:
            best, chosen = mean, (keep_largest, min_size)
    before = unchanged[0] if raw is None else _dice(raw)[0]
    after = _dice(cases, keep_largest=chosen[0], min_size=chosen[1])[0]
    # an absent class counts as right here: removing what is wrong in such a case makes it better
    change = np.nan_to_num(after, nan=1.0) - np.nan_to_num(before, nan=1.0)
    return replace(
        plain,
        keep_largest=chosen[0],
        min_size=chosen[1],
        is_kept=chosen != (False, 0.0),
        dice_before=mean_of_known(before),
        dice_after=mean_of_known(after),
        better=int((change > 0).sum()),
        worse=int((change < 0).sum()),
    )
