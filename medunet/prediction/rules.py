"""How predicted label maps are cleaned, class by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassRule:
    """The best rule for one class or region, and whether it is worth keeping.

    Args:
        name: of the class.
        index: of the class in the network's output.
        value: of the class in the files; of a region the one that it is written with.
        keep_largest: only the largest component stays.
        min_size: smaller components go; mm³, in the plane mm².
        is_kept: whether the rule is to be used; a rule that does not pay is reported all the same.
        dice_before: mean over the cases (those without the class in reference and prediction are left out).
        dice_after: the same with the rule.
        better: cases whose Dice rises.
        worse: cases whose Dice falls.
    """

    name: str
    index: int
    value: int
    keep_largest: bool = False
    min_size: float = 0.0
    is_kept: bool = False
    dice_before: float = float("nan")
    dice_after: float = float("nan")
    better: int = 0
    worse: int = 0


def by_value(rules: Iterable[ClassRule]) -> dict[int, tuple[bool, float]]:
    """The rules that are kept, as `medunet.transforms.clean_labels` takes them for label maps of files.

    Example:
        >>> by_value([ClassRule("liver", 1, 6, keep_largest=True, is_kept=True), ClassRule("spleen", 2, 9)])
        {6: (True, 0.0)}
    """
    return {rule.value: (rule.keep_largest, rule.min_size) for rule in rules if rule.is_kept}


def as_step(rules: Iterable[ClassRule], *, classes: int) -> dict[str, Any]:
    """The arguments of `medunet.transforms.CleanComponentsd`, or `CleanRegionsd`, for the rules that are kept.

    Args:
        rules: of the classes, or of the regions.
        classes: how many the network's output has.

    Example:
        >>> as_step([ClassRule("liver", 1, 6, keep_largest=True, min_size=9.0, is_kept=True)], classes=3)
        {'keep_largest': [1], 'min_size': [0.0, 9.0, 0.0]}
    """
    kept = [rule for rule in rules if rule.is_kept]
    sizes = [0.0] * classes
    for rule in kept:
        sizes[rule.index] = rule.min_size
    return {"keep_largest": [rule.index for rule in kept if rule.keep_largest], "min_size": sizes}


def by_region(rules: Iterable[ClassRule]) -> dict[int, tuple[bool, float]]:
    """The rules of regions that are kept, as `medunet.transforms.clean_regions` takes them.

    Example:
        >>> by_region([ClassRule("whole", 0, 1, keep_largest=True, is_kept=True), ClassRule("core", 1, 2)])
        {0: (True, 0.0)}
    """
    return {rule.index: (rule.keep_largest, rule.min_size) for rule in rules if rule.is_kept}
