"""Which cleaning of label maps pays, judged on cases that the network was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medunet.metrics.evaluation import BACKGROUND
from medunet.metrics.overlap import dice_from_counts
from medunet.transforms import Components

from .evaluation import Pair, read_pair
from .rules import ClassRule

MIN_GAIN = 1e-4
"""Mean Dice by which a rule must be better than none, and a stricter rule than a plainer one; less is chance."""

MAX_SIZES = 48
"""Smallest sizes that are tried for a class, at quantiles of the sizes that occur."""


@dataclass
class _Class:
    """Components of one class over the cases: their sizes, and how much of each is right."""

    sizes: list[np.ndarray] = field(default_factory=list)
    """mm³ or mm², one array a case."""
    voxels: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)
    """Voxels of the component that are of the class in the reference, too."""
    reference: list[int] = field(default_factory=list)

    def dice(self, *, keep_largest: bool = False, min_size: float = 0.0) -> np.ndarray:
        """Of every case under a rule. Exact: a component that goes becomes background, so no other class changes."""
        scores = []
        for sizes, voxels, right, reference in zip(self.sizes, self.voxels, self.right, self.reference, strict=True):
            keep = sizes >= min_size
            if keep_largest and len(sizes):
                keep &= np.arange(len(sizes)) == np.argmax(voxels)
            scores.append(dice_from_counts(int(voxels[keep].sum()), reference, int(right[keep].sum())))
        return np.array(scores)

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
            _add(found, here if ignore is None else here & (reference != ignore), reference == labels[name], spacing)
    return [_best(found, name, names.index(name), labels[name]) for name, found in classes.items()]


def _add(found: _Class, pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float]) -> None:
    components = Components.of(pred)
    right = np.bincount(components.numbers[ref[components.box]], minlength=len(components.voxels) + 1)[1:]
    found.sizes.append(components.voxels * float(np.prod(spacing)))
    found.voxels.append(components.voxels)
    found.right.append(right)
    found.reference.append(int(np.count_nonzero(ref)))


def _best(found: _Class, name: str, index: int, value: int) -> ClassRule:
    before = found.dice()
    best, best_rule = _mean(before), (False, 0.0)
    for keep_largest, min_size in found.candidates():
        mean = _mean(found.dice(keep_largest=keep_largest, min_size=min_size))
        if mean > best + MIN_GAIN:
            best, best_rule = mean, (keep_largest, min_size)
    after = found.dice(keep_largest=best_rule[0], min_size=best_rule[1])
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
