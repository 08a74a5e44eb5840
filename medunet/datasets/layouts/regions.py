"""Labels of a `dataset.json`: classes, or regions that overlap (nnU-Net's region-based training)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medunet.errors import DataError

ORDER_KEY = "regions_class_order"  # nnU-Net's name for the values that regions are written with
EXAMPLE = '{"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}'


@dataclass(frozen=True)
class Region:
    """A class of the network that is a union of label values; regions may overlap.

    Args:
        name: name for people.
        values: values in the files, sorted.
        written: value that a predicted region is written with; later regions are written over earlier ones.
    """

    name: str
    values: tuple[int, ...]
    written: int


class ParsedLabels(NamedTuple):
    """Labels of a `dataset.json`."""

    labels: dict[str, int]  # value by name, background first
    ignore: int | None = None  # value of voxels without annotation
    regions: tuple[Region, ...] = ()


def parse_labels(labels: object, file: Path, *, order: object = None) -> ParsedLabels:
    """Parse labels of a `dataset.json`: MSD's ``{"0": "background"}``, nnU-Net's ``{"background": 0}``, or regions.

    A list of several values declares regions. A DataError names the `file` if the labels cannot be understood.

    Examples:
        >>> labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
        >>> parsed = parse_labels(labels, Path("dataset.json"), order=[1, 2, 3])
        >>> parsed.labels  # a value that is not a region alone is `label_VALUE`
        {'background': 0, 'label_1': 1, 'label_2': 2, 'enhancing': 3}
        >>> [(region.name, region.written) for region in parsed.regions]
        [('whole', 1), ('core', 2), ('enhancing', 3)]
    """
    if not isinstance(labels, Mapping) or not labels:
        raise DataError("labels are missing", file=file, expected='{"background": 0, "liver": 1, ...}')
    if any(isinstance(listed, list | tuple) and len(set(listed)) > 1 for listed in labels.values()):
        return _parse_regions(labels, order, file)
    pairs: dict[str, int] = {}
    for key, listed in labels.items():
        value = listed[0] if isinstance(listed, list | tuple) and len(listed) == 1 else listed
        if isinstance(value, str) and str(key).isdigit() and not value.isdigit():
            name, number = value, int(key)  # MSD
        elif isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            name, number = str(key), int(value)  # nnU-Net
        else:
            raise DataError("unknown form of a label", file=file, received={key: value}, expected='{"liver": 1}')
        if name in pairs or number in pairs.values():
            raise DataError("two labels share a name or a value", file=file, received={name: number})
        pairs[name] = number
    ignore = pairs.pop("ignore", None)
    if len(pairs) < 2:
        raise DataError("labels need a background and one more", file=file, received=pairs)
    return ParsedLabels(dict(sorted(pairs.items(), key=lambda pair: pair[1])), ignore)


def _parse_regions(labels: Mapping[str, object], order: object, file: Path) -> ParsedLabels:
    unions = {str(name): _values(name, listed, file) for name, listed in labels.items()}
    ignored = unions.pop("ignore", ())
    if len(ignored) > 1:
        raise DataError("ignore must be one value", file=file, received=list(ignored))
    background = next((name for name, values in unions.items() if values == (0,)), None)
    if background is None:
        raise DataError("regions need a background", file=file, received=dict(labels), expected=EXAMPLE)
    del unions[background]
    for name, values in unions.items():
        if {0, *ignored} & set(values):
            cause = "regions must not contain the background or ignored voxels"
            raise DataError(cause, file=file, received={name: list(values)})
    if not isinstance(order, list | tuple):
        raise DataError(f"regions need {ORDER_KEY}", file=file, received=order, expected=EXAMPLE)
    fits = len(order) == len(unions) == len(set(order))
    if not fits or not all(value in values for value, values in zip(order, unions.values(), strict=True)):
        expected = f"one of its own values for each of {', '.join(unions)}, all different"
        raise DataError(f"{ORDER_KEY} does not fit the regions", file=file, received=list(order), expected=expected)
    regions = tuple(Region(name, values, value) for (name, values), value in zip(unions.items(), order, strict=True))
    alone = {region.values[0]: region.name for region in regions if len(region.values) == 1}
    numbers = sorted({value for values in unions.values() for value in values})
    names = {background: 0, **{alone.get(value, f"label_{value}"): value for value in numbers}}
    return ParsedLabels(names, ignored[0] if ignored else None, regions)


def _values(name: object, listed: object, file: Path) -> tuple[int, ...]:
    values = listed if isinstance(listed, list | tuple) else [listed]
    numbers = [int(v) for v in values if (isinstance(v, str) and v.isdigit()) or type(v) is int]
    if not numbers or len(numbers) < len(values) or min(numbers) < 0:
        raise DataError("unknown form of a region", file=file, received={name: listed}, expected='{"whole": [1, 2]}')
    return tuple(sorted(set(numbers)))
