"""Cleaning a label map of regions, classes that overlap: what leaves one region stays in those around it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet.errors import ConfigError

from .postprocess import Array, Components, as_array, check_sizes, voxel_size


class CleanRegionsd(MapTransform):
    """Take components away from a region that are not its largest, or too small.

    Their voxels get the value of the regions that they still belong to, and background where there is none::

        whole [1, 2], core [2]     1 1 2 2 1 . . 2
        small cores go             1 1 2 2 1 . . 1
        then small wholes          1 1 2 2 1 . . .

    Regions that lie within the one that is cleaned lose the same voxels. Larger unions are cleaned first.

    Args:
        keys: maps of class indices, each `(1, *spatial)`, on the grid of the file.
        regions: class indices of each region.
        order: the class index that each region is painted with, see :func:`medunet.transforms.paint_regions`.
        keep_largest: numbers of the regions of which only the largest component stays.
        min_size: smallest size of a component for each region; in mm³, in the plane mm² (pixels where the file has no
            spacing); 0 for any.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ConfigError: no such region, a size that is none, or a region that cannot be cleaned (see `values_outside`).

    Example:
        >>> labels = torch.tensor([[[1, 1, 2, 2, 1, 0, 0, 2]]])
        >>> CleanRegionsd("pred", [[1, 2], [2]], order=[1, 2], min_size=[0, 2])({"pred": labels})["pred"][0].tolist()
        [[1, 1, 2, 2, 1, 0, 0, 1]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        regions: Sequence[Sequence[int]],
        *,
        order: Sequence[int],
        keep_largest: Sequence[int] = (),
        min_size: Sequence[float] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        sizes = check_sizes(min_size)
        numbers = sorted({*keep_largest, *(number for number, size in sizes.items() if size > 0)})
        if len(order) != len(regions) or any(not 0 <= number < len(regions) for number in numbers):
            raise ConfigError("no such region to clean", received=numbers, expected=f"0 to {len(regions) - 1}")
        self.regions = tuple(tuple(region) for region in regions)
        self.order = tuple(order)
        self.rules = {number: (number in keep_largest, sizes.get(number, 0.0)) for number in numbers}
        for number in numbers:
            if values_outside(number, self.regions, self.order) is None:
                raise ConfigError("what leaves this region has no value", received=list(self.regions[number]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with cleaned label maps."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            cleaned = clean_regions(
                as_array(labels[0]), self.rules, self.regions, order=self.order, voxel_size=voxel_size(labels)
            )
            tensor = torch.from_numpy(cleaned)[None].to(labels.device)
            item[key] = MetaTensor(tensor).copy_meta_from(labels) if isinstance(labels, MetaTensor) else tensor
        return item


def clean_regions(
    labels: Array,
    rules: Mapping[int, tuple[bool, float]],
    regions: Sequence[Sequence[int]],
    *,
    order: Sequence[int],
    voxel_size: float,
) -> Array:
    """A label map `(*spatial)` of regions without the components that the rules refuse.

    Args:
        labels: integers, of which 0 is the background.
        rules: by number of the region: whether only the largest component stays, and the smallest size that stays.
        regions: values of each region in the label map.
        order: the value that each region is written with.
        voxel_size: of one voxel, in the unit of the sizes.
    """
    cleaned = labels.copy()
    for number in by_size(regions):
        becomes = values_outside(number, regions, order) if number in rules else None
        if becomes is None:
            continue
        largest, min_size = rules[number]
        components = Components.of(np.isin(cleaned, regions[number]))
        keep = components.kept(largest=largest, min_voxels=min_size / voxel_size)
        if keep.all():
            continue
        removed = np.concatenate([[False], ~keep])[components.numbers]
        old = cleaned[components.box][removed]
        new = np.zeros_like(old)
        for value, outside in becomes.items():
            new[old == value] = outside
        cleaned[components.box][removed] = new
    return cleaned


def by_size(regions: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of the regions, larger unions first: what is taken from them is taken from those within.

    Example:
        >>> by_size([[3], [1, 2, 3], [2, 3]])
        [1, 2, 0]
    """
    return sorted(range(len(regions)), key=lambda number: -len(set(regions[number])))


def regions_within(number: int, regions: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of the other regions that lose what this one loses, for they lie within it.

    Example:
        >>> regions_within(1, [[1, 2, 3], [2, 3], [3]])
        [2]
    """
    union = set(regions[number])
    return [other for other, values in enumerate(regions) if other != number and set(values) <= union]


def values_outside(number: int, regions: Sequence[Sequence[int]], order: Sequence[int]) -> dict[int, int] | None:
    """What the values of a region become where it is taken away: the values of the same other regions.

    None where there is no such value, so that another region would change, too.

    Args:
        number: of the region.
        regions: values of each region.
        order: the value that each region is written with; no others occur in predictions, but for 0.

    Example:
        >>> values_outside(1, [[1, 2, 3], [2, 3], [3]], [1, 2, 3])  # whole, core, enhancing tumour
        {2: 1, 3: 1}
        >>> values_outside(0, [[1, 3], [2, 3]], [1, 3]) is None  # 3 without the first region would be 2
        True
    """
    gone = {number, *regions_within(number, regions)}
    belongs = {value: frozenset(k for k, values in enumerate(regions) if value in values) for value in (0, *order)}
    value_of = {homes: value for value, homes in reversed(belongs.items())}
    wanted = {value: belongs[value] - gone for value in order if value in regions[number]}
    if not all(homes in value_of for homes in wanted.values()):
        return None
    return {value: value_of[homes] for value, homes in wanted.items()}
