"""Connected components of classes and regions, and label maps without those that a rule rejects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from scipy import ndimage

from medunet.errors import ConfigError

from .tensors import TensorTransform

Array = np.ndarray[Any, np.dtype[Any]]

# by class or region: whether to keep only the largest component, and the smallest size to keep
Rules = Mapping[int, tuple[bool, float]]


@dataclass(frozen=True)
class Components:
    """The connected components of one mask; voxels that share a corner are connected.

    Args:
        numbers: component 1 .. N of each voxel of the box, 0 outside the mask.
        box: the smallest box around the mask.
        voxels: size of each component, `(N,)`.
    """

    numbers: Array
    box: tuple[slice, ...]
    voxels: Array

    @classmethod
    def of(cls, mask: Array) -> "Components":
        """Label a mask; only the smallest box around it is searched."""
        boxes = ndimage.find_objects(mask.astype(np.uint8))
        box = boxes[0] if boxes and boxes[0] is not None else (slice(0, 0),) * mask.ndim
        numbers, count = ndimage.label(mask[box], structure=np.ones((3,) * mask.ndim))
        return cls(numbers, box, np.bincount(numbers.ravel(), minlength=count + 1)[1:])

    def selected(self, *, largest: bool, min_voxels: float) -> Array:
        """Return which components satisfy a rule, `(N,)` bool; ties for the largest go to the first."""
        mask = self.voxels >= min_voxels
        if largest and len(mask):
            mask &= np.arange(len(mask)) == np.argmax(self.voxels)
        return mask


class CleanComponentsd(TensorTransform):
    """Set components of a class that are too small, or not its largest, to background.

    Unlike MONAI's ``KeepLargestConnectedComponentd`` and ``RemoveSmallObjectsd``, each class has its own size, in
    millimetres, and only the box around it is searched.

    Args:
        keys: maps of class indices, each `(1, *spatial)`, on the grid of the file.
        keep_largest: class indices of which only the largest component is kept.
        min_size: smallest size of a component per class index, starting with the background; mm³, in 2D mm² (pixels if
            the file has no spacing). 0 keeps all.

    Raises:
        ConfigError: a rule for the background, or an invalid size.

    Examples:
        >>> labels = torch.tensor([[[1, 1, 0, 1], [0, 0, 0, 0], [2, 0, 2, 2]]])
        >>> CleanComponentsd("pred", keep_largest=[1], min_size=[0, 0, 2])({"pred": labels})["pred"][0].tolist()
        [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]]
    """

    def __init__(
        self, keys: KeysCollection = "pred", *, keep_largest: Sequence[int] = (), min_size: Sequence[float] = ()
    ) -> None:
        super().__init__(keys)
        self.rules = _rules(keep_largest, min_size)
        if any(index < 1 for index in self.rules):
            raise ConfigError("rules must not name the background", received=f"{keep_largest=}, {min_size=}")

    def _changed(self, values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        cleaned = clean_labels(values[0].cpu().numpy(), self.rules, voxel_size=voxel_size(source))
        return torch.from_numpy(cleaned)[None].to(values.device)


class CleanRegionsd(TensorTransform):
    """Remove components that are too small, or not the largest, from regions.

    Removed voxels get the value of the regions that they still belong to, or background::

        whole [1, 2], core [2]     1 1 2 2 1 . . 2
        remove small cores         1 1 2 2 1 . . 1
        then small wholes          1 1 2 2 1 . . .

    Regions within the one that is cleaned lose the same voxels. Larger unions are cleaned first.

    Args:
        keys: maps of class indices, each `(1, *spatial)`, on the grid of the file.
        regions: class indices of each region.
        order: the class index that each region is painted with.
        keep_largest: indices of the regions of which only the largest component is kept.
        min_size: smallest size of a component per region; mm³, in 2D mm² (pixels if the file has no spacing). 0 keeps
            all.

    Raises:
        ConfigError: an unknown region, an invalid size, or a region whose removal no class index can express.

    Examples:
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
    ) -> None:
        super().__init__(keys)
        self.regions = tuple(tuple(region) for region in regions)
        self.order = tuple(order)
        self.rules = _rules(keep_largest, min_size)
        if len(order) != len(regions) or any(not 0 <= number < len(regions) for number in self.rules):
            raise ConfigError("unknown region", received=sorted(self.rules), expected=f"0 to {len(regions) - 1}")
        for number in self.rules:
            if values_outside(number, self.regions, self.order) is None:
                region = self.regions[number]
                raise ConfigError("region cannot be cleaned: no class index can replace it", received=region)

    def _changed(self, values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        labels, size = values[0].cpu().numpy(), voxel_size(source)
        cleaned = clean_regions(labels, self.rules, self.regions, order=self.order, voxel_size=size)
        return torch.from_numpy(cleaned)[None].to(values.device)


def clean_labels(labels: Array, rules: Rules, *, voxel_size: float, background: int = 0) -> Array:
    """Return a label map `(*spatial)` without the components that the rules (by label value) reject.

    Args:
        labels: integers.
        rules: whether to keep only the largest component, and the smallest size.
        voxel_size: size of one voxel, in the unit of the rules.
        background: value of removed voxels.
    """
    cleaned = labels.copy()
    for value, rule in rules.items():
        _clean(cleaned, {value: background}, rule, voxel_size)
    return cleaned


def clean_regions(
    labels: Array, rules: Rules, regions: Sequence[Sequence[int]], *, order: Sequence[int], voxel_size: float
) -> Array:
    """Return a label map `(*spatial)` without the components that the rules (by region index) reject.

    Args:
        labels: integers; 0 is the background.
        rules: whether to keep only the largest component, and the smallest size.
        regions: values of each region in the label map.
        order: the value that each region is written with.
        voxel_size: size of one voxel, in the unit of the rules.
    """
    cleaned = labels.copy()
    for number in by_size(regions):
        if number in rules and (becomes := values_outside(number, regions, order)) is not None:
            _clean(cleaned, {**dict.fromkeys(regions[number], 0), **becomes}, rules[number], voxel_size)
    return cleaned


def _clean(labels: Array, becomes: Mapping[int, int], rule: tuple[bool, float], voxel_size: float) -> None:
    """Change the components of a union of values that a rule rejects, in place; `becomes` has the new values."""
    values = list(becomes)
    components = Components.of(labels == values[0] if len(values) == 1 else np.isin(labels, values))
    selected = components.selected(largest=rule[0], min_voxels=rule[1] / voxel_size)
    if selected.all():
        return
    removed = np.concatenate([[False], ~selected])[components.numbers]
    old = labels[components.box][removed]
    new = np.zeros_like(old)
    for value, outside in becomes.items():
        new[old == value] = outside
    labels[components.box][removed] = new


def by_size(regions: Sequence[Sequence[int]]) -> list[int]:
    """Return the indices of the regions, larger unions first."""
    return sorted(range(len(regions)), key=lambda number: -len(set(regions[number])))


def regions_within(number: int, regions: Sequence[Sequence[int]]) -> list[int]:
    """Return the indices of the regions contained in this one: removing voxels from it removes them there too."""
    union = set(regions[number])
    return [other for other, values in enumerate(regions) if other != number and set(values) <= union]


def values_outside(number: int, regions: Sequence[Sequence[int]], order: Sequence[int]) -> dict[int, int] | None:
    """Return the new value of voxels that leave a region but stay in the others, by old value.

    None if such a value does not exist. `order` has the value that each region is written with; predictions contain
    only these and 0.

    Examples:
        >>> values_outside(1, [[1, 2, 3], [2, 3], [3]], [1, 2, 3])  # whole, core, enhancing tumour
        {2: 1, 3: 1}
        >>> values_outside(0, [[1, 3], [2, 3]], [1, 3]) is None  # 3 without the first region would be 2
        True
    """
    removed = {number, *regions_within(number, regions)}
    members = {value: frozenset(k for k, values in enumerate(regions) if value in values) for value in (0, *order)}
    value_of = {homes: value for value, homes in reversed(members.items())}
    wanted = {value: members[value] - removed for value in order if value in regions[number]}
    if not all(homes in value_of for homes in wanted.values()):
        return None
    return {value: value_of[homes] for value, homes in wanted.items()}


def voxel_size(labels: torch.Tensor) -> float:
    """Return the volume (in 2D the area) of a voxel of a map `(1, *spatial)` in mm³ (mm²); 1 without an affine."""
    if not isinstance(labels, MetaTensor):
        return 1.0
    columns = np.asarray(labels.affine, dtype=float)[:-1, : labels.ndim - 1]
    return float(np.prod(np.linalg.norm(columns, axis=0)))


def _rules(keep_largest: Sequence[int], min_size: Sequence[float]) -> dict[int, tuple[bool, float]]:
    sizes = dict(enumerate(map(float, min_size)))
    if not all(math.isfinite(size) and size >= 0 for size in sizes.values()):
        raise ConfigError("min_size must be numbers >= 0", received=list(min_size))
    numbers = sorted({*keep_largest, *(number for number, size in sizes.items() if size > 0)})
    return {number: (number in keep_largest, sizes.get(number, 0.0)) for number in numbers}
