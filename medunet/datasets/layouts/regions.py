"""Regions: classes that overlap, each a union of label values (nnU-Net's region-based training)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medunet.errors import DataError

ORDER_KEY = "regions_class_order"
"""nnU-Net's name for the values that regions are written with, beside `labels` in `dataset.json`."""

EXAMPLE = '{"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}'


@dataclass(frozen=True)
class Region:
    """A class of the network that is a union of label values; regions may overlap.

    ::

        values in the files   0 1 1 2 3 2 1 0
        whole  [1, 2, 3]        x x x x x x
        core      [2, 3]            x x x
        enhancing    [3]              x

    Args:
        name: for people.
        values: in the files, sorted.
        written: the value that a predicted region is written with; later regions are written over earlier ones.
    """

    name: str
    values: tuple[int, ...]
    written: int


def has_regions(labels: object) -> bool:
    """Whether labels of a `dataset.json` declare a union of several values.

    Example:
        >>> has_regions({"background": 0, "whole": [1, 2]}), has_regions({"background": [0], "liver": [1]})
        (True, False)
    """
    return isinstance(labels, Mapping) and any(len(set(v)) > 1 for v in labels.values() if isinstance(v, list | tuple))


def parse_regions(
    labels: Mapping[str, object], order: object, file: Path
) -> tuple[dict[str, int], int | None, tuple[Region, ...]]:
    """Regions of a `dataset.json` in nnU-Net's words.

    Args:
        labels: name to value or to a list of values; `ignore` names the value that is not annotated.
        order: the values that the regions are written with, in the order of `labels`.
        file: for errors.

    Returns:
        Name to value of the single values in the files, background first (a value that no region has alone is
        `label_VALUE`); the value to ignore; and the regions in their order.

    Raises:
        DataError: no background, values that are none, an order that does not fit.

    Example:
        >>> labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
        >>> values, ignore, regions = parse_regions(labels, [1, 2, 3], Path("dataset.json"))
        >>> values
        {'background': 0, 'label_1': 1, 'label_2': 2, 'enhancing': 3}
        >>> [(region.name, region.written) for region in regions]
        [('whole', 1), ('core', 2), ('enhancing', 3)]
    """
    unions = {str(name): _values(name, listed, file) for name, listed in labels.items()}
    ignored = unions.pop("ignore", None)
    if ignored is not None and len(ignored) > 1:
        raise DataError("ignore is one value", file=file, received=list(ignored))
    ignore = ignored[0] if ignored else None
    background = next((name for name, values in unions.items() if values == (0,)), None)
    if background is None:
        raise DataError("regions need a background", file=file, received=dict(labels), expected=EXAMPLE)
    del unions[background]
    for name, values in unions.items():
        if 0 in values or (ignore is not None and ignore in values):
            raise DataError(
                "a region holds the background or what is ignored", file=file, received={name: list(values)}
            )
    written = _order(order, unions, file)
    regions = tuple(Region(name, values, value) for (name, values), value in zip(unions.items(), written, strict=True))
    alone = {region.values[0]: region.name for region in regions if len(region.values) == 1}
    found = sorted({value for region in regions for value in region.values})
    return {background: 0, **{alone.get(value, f"label_{value}"): value for value in found}}, ignore, regions


def _values(name: object, listed: object, file: Path) -> tuple[int, ...]:
    values = listed if isinstance(listed, list | tuple) else [listed]
    numbers = [int(v) for v in values if (isinstance(v, str) and v.isdigit()) or type(v) is int]
    if not numbers or len(numbers) < len(values) or min(numbers) < 0:
        raise DataError("region is not understood", file=file, received={name: listed}, expected='{"whole": [1, 2]}')
    return tuple(sorted(set(numbers)))


def _order(order: object, unions: Mapping[str, Sequence[int]], file: Path) -> list[int]:
    if not isinstance(order, list | tuple):
        raise DataError(
            f"regions need {ORDER_KEY}: the value that each one is written with, later over earlier",
            file=file,
            received=order,
            expected=EXAMPLE,
        )
    fits = len(order) == len(unions) == len(set(order))
    if not fits or not all(value in values for value, values in zip(order, unions.values(), strict=True)):
        raise DataError(
            f"{ORDER_KEY} does not fit the regions",
            file=file,
            received=list(order),
            expected=f"one of its own values for each of {', '.join(unions)}, all different",
        )
    return list(order)
