"""Cleaning a label map: the largest component of a class, and none that is too small."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from medunet.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Components:
    """The connected components of one class in one label map; voxels that share a corner are connected.

    Args:
        numbers: component 1 .. N of each voxel of the box, 0 outside the class.
        box: where the class lies in the label map.
        voxels: size of each component, `(N,)`.
    """

    numbers: Array
    box: tuple[slice, ...]
    voxels: Array

    @classmethod
    def of(cls, mask: Array) -> Components:
        """Find them; only the smallest box around the class is searched.

        Example:
            >>> Components.of(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=bool)).voxels.tolist()
            [2, 2]
        """
        found = ndimage.find_objects(mask.astype(np.uint8))
        box = found[0] if found and found[0] is not None else (slice(0, 0),) * mask.ndim
        numbers, count = ndimage.label(mask[box], structure=np.ones((3,) * mask.ndim))
        return cls(numbers, box, np.bincount(numbers.ravel(), minlength=count + 1)[1:])

    def kept(self, *, largest: bool, min_voxels: float) -> Array:
        """Which components a rule keeps, `(N,)` bool; of equally large ones the first is the largest."""
        keep = self.voxels >= min_voxels
        if largest and len(keep):
            only = np.zeros_like(keep)
            only[np.argmax(self.voxels)] = True
            keep &= only
        return keep


class CleanComponentsd(MapTransform):
    """Turn components of a class that are not its largest, or too small, into background.

    MONAI's ``KeepLargestConnectedComponentd`` and ``RemoveSmallObjectsd`` search the whole volume for each class and
    know one size for all; here each class has its own, in millimetres, as images differ in spacing.

    Args:
        keys: maps of class indices, each `(1, *spatial)`, on the grid of the file.
        keep_largest: class indices of which only the largest component stays.
        min_size: smallest size of a component for each class index, the background's first; in mm³, in the plane mm²
            (pixels where the file has no spacing); 0 for any.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ConfigError: a rule for the background, or a size that is none.

    Example:
        >>> labels = torch.tensor([[[1, 1, 0, 1], [0, 0, 0, 0], [2, 0, 2, 2]]])
        >>> CleanComponentsd("pred", keep_largest=[1], min_size=[0, 0, 2])({"pred": labels})["pred"][0].tolist()
        [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]]
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        keep_largest: Sequence[int] = (),
        min_size: Sequence[float] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        sizes = check_sizes(min_size)
        if any(index < 1 for index in keep_largest) or sizes.get(0, 0) != 0:
            raise ConfigError(
                "the background has no components to remove", received=f"keep_largest={list(keep_largest)}, {sizes}"
            )
        indices = sorted({*keep_largest, *(index for index, size in sizes.items() if size > 0)})
        self.rules = {index: (index in keep_largest, sizes.get(index, 0.0)) for index in indices}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with cleaned label maps."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            cleaned = clean_labels(as_array(labels[0]), self.rules, voxel_size=voxel_size(labels))
            tensor = torch.from_numpy(cleaned)[None].to(labels.device)
            item[key] = MetaTensor(tensor).copy_meta_from(labels) if isinstance(labels, MetaTensor) else tensor
        return item


def clean_labels(
    labels: Array, rules: Mapping[int, tuple[bool, float]], *, voxel_size: float, background: int = 0
) -> Array:
    """A label map `(*spatial)` without the components that the rules refuse.

    Args:
        labels: integers.
        rules: by value of the label map: whether only the largest component stays, and the smallest size that stays.
        voxel_size: of one voxel, in the unit of the sizes.
        background: what removed voxels become.
    """
    cleaned = labels.copy()
    for value, (largest, min_size) in rules.items():
        components = Components.of(labels == value)
        keep = components.kept(largest=largest, min_voxels=min_size / voxel_size)
        if not keep.all():
            removed = np.concatenate([[False], ~keep])[components.numbers]
            cleaned[components.box][removed] = background
    return cleaned


def voxel_size(labels: torch.Tensor) -> float:
    """Volume (in the plane, area) of a voxel of a map `(1, *spatial)`, in mm; 1 where it knows no affine."""
    if not isinstance(labels, MetaTensor):
        return 1.0
    columns = np.asarray(labels.affine, dtype=float)[:-1, : labels.ndim - 1]
    return float(np.prod(np.linalg.norm(columns, axis=0)))


def check_sizes(min_size: Sequence[float]) -> dict[int, float]:
    """Smallest sizes by index; raises ConfigError for anything that is no size."""
    sizes = dict(enumerate(float(size) for size in min_size))
    if not all(math.isfinite(size) and size >= 0 for size in sizes.values()):
        raise ConfigError("min_size is no size", received=list(min_size), expected="numbers >= 0")
    return sizes


def as_array(labels: torch.Tensor) -> Array:
    """A tensor's numbers without its metadata, on the CPU."""
    tensor = labels.as_tensor() if isinstance(labels, MetaTensor) else torch.as_tensor(labels)
    array: Array = tensor.detach().cpu().numpy()
    return array
