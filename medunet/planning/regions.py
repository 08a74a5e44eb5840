"""What a bundle is told of regions, classes that overlap."""

from __future__ import annotations

from typing import Any

from medunet.datasets import SegmentationDataset
from medunet.transforms import IGNORE_INDEX


def region_values(dataset: SegmentationDataset) -> dict[str, Any]:
    """Values by config id; empty lists where the data set has no regions."""
    return {
        "region_names": [region.name for region in dataset.regions],
        "region_values": [list(region.values) for region in dataset.regions],
        "regions_class_order": [region.written for region in dataset.regions],
    }


def region_loss(ignore: int | None = None) -> dict[str, Any]:
    """The loss of a bundle whose channels are regions.

    Args:
        ignore: value of voxels without annotation, if there are such.
    """
    loss = {"_target_": "medunet.losses.RegionDiceCELoss", "regions": "@region_indices", "batch": True}
    return loss if ignore is None else {**loss, "ignore_index": IGNORE_INDEX}
