"""Regions, classes that overlap: channels of a network painted into one map of class indices, and back to masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet.errors import ConfigError


def paint_regions(values: torch.Tensor, order: Sequence[int], *, threshold: float = 0.0) -> torch.Tensor:
    """One class index a position from one channel a region: later regions are painted over earlier ones (nnU-Net).

    Args:
        values: `(regions, ...)`, logits or probabilities.
        order: the class index that each region is painted with.
        threshold: above which a position belongs to a region.

    Returns:
        `(...)`, uint8; 0 where there is no region.

    Raises:
        ConfigError: another number of channels.

    Example:
        >>> whole, core = [2.0, 3.0, -1.0], [-2.0, 1.0, -4.0]
        >>> paint_regions(torch.tensor([whole, core]), [1, 2]).tolist()
        [1, 2, 0]
    """
    if len(values) != len(order):
        raise ConfigError("channels do not fit the regions", received=len(values), expected=len(order))
    painted = torch.zeros(values.shape[1:], dtype=torch.uint8, device=values.device)
    for channel, index in zip(values, order, strict=True):
        painted.masked_fill_(channel > threshold, index)
    return painted


class RegionMasksd(MapTransform):
    """One mask a region from maps of class indices.

    Args:
        keys: maps `(1, *spatial)`; afterwards `(regions, *spatial)`, uint8.
        regions: class indices of each region.
        allow_missing_keys: skip keys that an item lacks.

    Example:
        >>> RegionMasksd("label", [[1, 2], [2]])({"label": torch.tensor([[0, 1, 2]])})["label"].tolist()
        [[0, 1, 1], [0, 0, 1]]
    """

    def __init__(
        self, keys: KeysCollection, regions: Sequence[Sequence[int]], *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.regions = tuple(tuple(int(index) for index in region) for region in regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with masks."""
        item = dict(data)
        for key in self.key_iterator(item):
            found = item[key]
            labels = (found.as_tensor() if isinstance(found, MetaTensor) else torch.as_tensor(found))[0]
            masks = torch.zeros((len(self.regions), *labels.shape), dtype=torch.uint8, device=labels.device)
            for mask, region in zip(masks, self.regions, strict=True):
                for index in region:
                    mask.masked_fill_(labels == index, 1)
            item[key] = MetaTensor(masks).copy_meta_from(found) if isinstance(found, MetaTensor) else masks
        return item
