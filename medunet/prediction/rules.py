"""Rules that clean predicted label maps, class by class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassRule:
    """The best rule for one class or region, and whether it is used.

    Args:
        name: name of the class.
        index: index of the class in the network's output.
        value: value of the class in files; of a region, the value that it is written with.
        keep_largest: whether only the largest component stays.
        min_size: smallest component that stays, in mm³, or mm² in 2D.
        is_kept: whether the rule is used; a rule without gain is reported too.
        dice_before: mean Dice over the cases that have the class in reference or prediction.
        dice_after: mean Dice with the rule.
        better: number of cases whose Dice rises.
        worse: number of cases whose Dice falls.
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
    """Return the rules in use by label value, for `medunet.transforms.clean_labels`."""
    return {rule.value: (rule.keep_largest, rule.min_size) for rule in rules if rule.is_kept}


def by_region(rules: Iterable[ClassRule]) -> dict[int, tuple[bool, float]]:
    """Return the rules in use by region index, for `medunet.transforms.clean_regions`."""
    return {rule.index: (rule.keep_largest, rule.min_size) for rule in rules if rule.is_kept}


def as_step(rules: Iterable[ClassRule], *, classes: int) -> dict[str, Any]:
    """Return the arguments of `CleanComponentsd` or `CleanRegionsd` for the rules in use.

    Examples:
        >>> as_step([ClassRule("liver", 1, 6, keep_largest=True, min_size=9.0, is_kept=True)], classes=3)
        {'keep_largest': [1], 'min_size': [0.0, 9.0, 0.0]}
    """
    used = [rule for rule in rules if rule.is_kept]
    sizes = [0.0] * classes
    for rule in used:
        sizes[rule.index] = rule.min_size
    return {"keep_largest": [rule.index for rule in used if rule.keep_largest], "min_size": sizes}
