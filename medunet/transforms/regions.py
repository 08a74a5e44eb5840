"""Regions, that is classes that overlap: channels painted into one map of class indices, and masks of such maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection

from medunet.errors import ConfigError

from .tensors import TensorTransform


def paint_regions(values: torch.Tensor, order: Sequence[int], *, threshold: float = 0.0) -> torch.Tensor:
    """Return one class index per voxel from one channel per region; later regions are painted over earlier ones.

    This is how nnU-Net writes regions.

    Args:
        values: `(regions, ...)`, logits or probabilities.
        order: the class index that each region is painted with.
        threshold: a voxel above it belongs to the region.

    Returns:
        `(...)`, uint8; 0 outside all regions.

    Raises:
        ConfigError: another number of channels.

    Example:
        >>> whole, core = [2.0, 3.0, -1.0], [-2.0, 1.0, -4.0]
        >>> paint_regions(torch.tensor([whole, core]), [1, 2]).tolist()
        [1, 2, 0]
    """
    if len(values) != len(order):
        raise ConfigError("channels do not match the regions", received=len(values), expected=len(order))
    painted = torch.zeros(values.shape[1:], dtype=torch.uint8, device=values.device)
    for channel, index in zip(values, order, strict=True):
        painted.masked_fill_(channel > threshold, index)
    return painted


class RegionMasksd(TensorTransform):
    """Replace maps of class indices by one mask per region.

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

    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        masks = torch.zeros((len(self.regions), *values.shape[1:]), dtype=torch.uint8, device=values.device)
        for mask, region in zip(masks, self.regions, strict=True):
            for index in region:
                mask.masked_fill_(values[0] == index, 1)
        return masks
