"""Which cleaning of label maps pays, judged on cases that the network was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medunet.metrics.evaluation import BACKGROUND
from medunet.metrics.overlap import dice_from_counts
from medunet.transforms import Components, by_size, clean_regions, regions_within, values_outside

from .evaluation import Pair, read_pair
from .rules import ClassRule, by_region

MIN_GAIN = 1e-4
"""Mean Dice by which a rule must be better than none, and a stricter rule than a plainer one; less is chance."""

ROUNDING = 1e-9
"""Differences of Dice that are none."""

MAX_SIZES = 48
"""Smallest sizes that are tried for a class, at quantiles of the sizes that occur."""


@dataclass
class _Class:
    """Components of one class over the cases: their sizes, and how much of each is right.

    Of a region, what lies within it goes with it: the first part is the region, further ones are those within.
    """

    sizes: list[np.ndarray] = field(default_factory=list)
    """mm³ or mm², one array a case."""
    voxels: list[np.ndarray] = field(default_factory=list)
    """Of each component, `(parts, N)`."""
    right: list[np.ndarray] = field(default_factory=list)
    """Those that are of the class in the reference, too."""
    reference: list[np.ndarray] = field(default_factory=list)
    """Voxels in the reference, `(parts,)`."""

    def dice(self, *, keep_largest: bool = False, min_size: float = 0.0) -> np.ndarray:
        """Of every part in every case under a rule, `(parts, cases)`. Exact: no other class changes."""
        scores = []
        for sizes, voxels, right, reference in zip(self.sizes, self.voxels, self.right, self.reference, strict=True):
            keep = sizes >= min_size
            if keep_largest and len(sizes):
                keep &= np.arange(len(sizes)) == np.argmax(voxels[0])
            kept = zip(voxels[:, keep].sum(axis=1), reference, right[:, keep].sum(axis=1), strict=True)
            scores.append([dice_from_counts(*map(int, counts)) for counts in kept])
        return np.array(scores).reshape(len(scores), -1).T if scores else np.empty((1, 0))

    def candidates(self) -> list[tuple[bool, float]]:
        """Rules to try, plain ones first: between every two sizes that occur a smallest size could lie."""
        sizes = np.unique(np.concatenate(self.sizes)) if self.sizes else np.empty(0)
        between = np.sqrt(sizes[:-1] * sizes[1:])
        if len(between) > MAX_SIZES:
            between = np.quantile(between, np.linspace(0, 1, MAX_SIZES))
        chosen = sorted({float(f"{size:.4g}") for size in between})
        return [(True, 0.0), *((False, size) for size in chosen), *((True, size) for size in chosen)]


def choose_rules(pairs: Iterable[Pair], labels: Mapping[str, int], *, ignore: int | None = None) -> list[ClassRule]:
    """Find for every class the rule that raises its mean Dice most; kept only where the gain exceeds `MIN_GAIN`.

    A rule acts on its own class alone, so none can worsen another class.

    Args:
        pairs: predictions and references, read once and one after the other.
        labels: value by class name, in the order of the network's output, background included.
        ignore: value in the references of voxels that do not count; components are judged without them.

    Returns:
        One rule a class, without the background.
    """
    names = list(labels)
    background = labels.get(BACKGROUND, 0)
    classes = {name: _Class() for name, value in labels.items() if value != background}
    for pair in pairs:
        pred, ref = read_pair(pair, labels)
        spacing = ref.record.geometry.spacing_mm
        predicted, reference = np.asarray(pred.image[0]), np.asarray(ref.image[0])
        for name, found in classes.items():
            here = predicted == labels[name]
            counted = here if ignore is None else here & (reference != ignore)
            _add(found, [counted], [reference == labels[name]], spacing)
    return [_best(found, name, names.index(name), labels[name]) for name, found in classes.items()]


def choose_region_rules(
    pairs: Sequence[Pair],
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]],
    *,
    order: Sequence[int],
    ignore: int | None = None,
) -> list[ClassRule]:
    """As :func:`choose_rules` for regions, classes that overlap.

    Regions that lie within another one lose what it loses, so a rule must not lower their mean Dice either. Larger
    regions are decided upon first, the others on label maps that were cleaned by then, as
    :class:`medunet.transforms.CleanRegionsd` does it: what is promised is what comes of all rules together.

    Args:
        pairs: predictions and references, read once a region.
        labels: value by name, background included.
        regions: values of their union by name, in the order of the network's output.
        order: the value that each region is written with.
        ignore: as of :func:`choose_rules`.

    Returns:
        One rule a region.
    """
    unions = list(regions.values())
    rules: dict[int, ClassRule] = {}
    for number in by_size(unions):
        parts = [unions[other] for other in (number, *regions_within(number, unions))]
        raw, found = _Class(), _Class()
        for pair in pairs:
            pred, ref = read_pair(pair, labels)
            spacing = ref.record.geometry.spacing_mm
            predicted, reference = np.asarray(pred.image[0]), np.asarray(ref.image[0])
            size = float(np.prod(spacing))
            cleaned = clean_regions(predicted, by_region(rules.values()), unions, order=order, voxel_size=size)
            for into, image in ((raw, predicted), (found, cleaned)):
                counted = image if ignore is None else np.where(reference == ignore, 0, image)
                wanted = [np.isin(reference, values) for values in parts]
                _add(into, [np.isin(counted, values) for values in parts], wanted, spacing)
        can_go = values_outside(number, unions, order) is not None
        name = list(regions)[number]
        rules[number] = _best(found, name, number, order[number], raw=raw, candidates=None if can_go else ())
    return [rules[number] for number in range(len(unions))]


def _add(found: _Class, pred: Sequence[np.ndarray], ref: Sequence[np.ndarray], spacing: Sequence[float]) -> None:
    """Take in a case; masks are one a part, of which the first holds the others."""
    components = Components.of(pred[0])
    count = len(components.voxels) + 1

    def by_component(mask: np.ndarray) -> np.ndarray:
        return np.bincount(components.numbers[mask[components.box]], minlength=count)[1:]

    found.sizes.append(components.voxels * float(np.prod(spacing)))
    found.voxels.append(np.stack([by_component(mask) for mask in pred]))
    found.right.append(np.stack([by_component(mask & wanted) for mask, wanted in zip(pred, ref, strict=True)]))
    found.reference.append(np.array([np.count_nonzero(mask) for mask in ref]))


def _best(
    found: _Class,
    name: str,
    index: int,
    value: int,
    *,
    raw: _Class | None = None,
    candidates: Sequence[tuple[bool, float]] | None = None,
) -> ClassRule:
    """The best of the candidates (None: all that are worth trying); `raw` is what comes before all rules."""
    unchanged = found.dice()
    best, best_rule = _mean(unchanged[0]), (False, 0.0)
    for keep_largest, min_size in found.candidates() if candidates is None else candidates:
        changed = found.dice(keep_largest=keep_largest, min_size=min_size)
        spoils = any(_mean(new) < _mean(old) - ROUNDING for new, old in zip(changed[1:], unchanged[1:], strict=True))
        if (mean := _mean(changed[0])) > best + MIN_GAIN and not spoils:
            best, best_rule = mean, (keep_largest, min_size)
    before = unchanged[0] if raw is None else raw.dice()[0]
    after = found.dice(keep_largest=best_rule[0], min_size=best_rule[1])[0]
    # an absent class counts as right here: removing what is wrong in such a case makes it better
    change = np.nan_to_num(after, nan=1.0) - np.nan_to_num(before, nan=1.0)
    return ClassRule(
        name=name,
        index=index,
        value=value,
        keep_largest=best_rule[0],
        min_size=best_rule[1],
        is_kept=best_rule != (False, 0.0),
        dice_before=_mean(before),
        dice_after=_mean(after),
        better=int((change > 0).sum()),
        worse=int((change < 0).sum()),
    )


def _mean(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else float("nan")
