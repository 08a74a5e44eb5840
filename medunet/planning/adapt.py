"""What a bundle's configuration takes over from a data set: channels, classes, spacing, patch size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import nibabel as nib
import numpy as np

from medunet.datasets import SegmentationDataset
from medunet.errors import ConfigError
from medunet.geometry import Geometry
from medunet.io import read_header

from .regions import region_loss, region_values

MAX_HEADERS = 50
"""Headers read to find median spacing and size; more cases hardly move a median."""


def adapt(dataset: SegmentationDataset, config: Mapping[str, Any]) -> dict[str, Any]:
    """Values by config id that fit a bundle's training config to a data set.

    The patch keeps about the number of voxels that the bundle has (which is what memory and time depend on) and takes
    the shape of the median image at the target spacing; the spacing is the median over the cases, axis by axis, in
    RAS order. Nothing else is planned here. A bundle of `medunet plan` (``planned`` is true) keeps what it has.

    Args:
        dataset: what to train on.
        config: the bundle's unresolved ``train.json``.

    Returns:
        New values by id. Ids whose value is right already are left out.

    Raises:
        ConfigError: the bundle has another number of spatial dimensions than the data, was planned for data with
            other channels or label values, or does not leave out the voxels that the data say to ignore.
    """
    spatial_dims = config["spatial_dims"]
    if dataset.spatial_dims != spatial_dims:
        raise ConfigError(
            f"the bundle is {spatial_dims}-D, the images are {dataset.spatial_dims}-D",
            file=dataset.root,
            remedy=f"use unet_{dataset.spatial_dims}d",
        )
    if dataset.ignore is not None and config.get("steps", {}).get("encode", {}).get("ignore_value") != dataset.ignore:
        raise ConfigError(
            "the data have voxels without annotation, of which the bundle does not know",
            file=dataset.root,
            received=f"ignored value {dataset.ignore}",
            remedy="plan for these data: `medunet plan`",
        )
    found: dict[str, Any] = {
        "in_channels": len(dataset.channels),
        "label_values": list(dataset.labels.values()),
        "label_names": list(dataset.labels),
    }
    regions = region_values(dataset)
    if dataset.regions or config.get("region_names"):
        found |= regions
    if config.get("planned"):
        for id_ in ("in_channels", "label_values", "region_values", "regions_class_order"):
            if id_ in found and found[id_] != config.get(id_):
                raise ConfigError(
                    f"the bundle was planned for data with other {id_}",
                    file=dataset.root,
                    received=found[id_],
                    expected=config.get(id_),
                    remedy="plan again for these data",
                )
        found = {}  # names of labels may have been edited
    elif dataset.regions and not config.get("region_names"):
        found["loss"] = region_loss()
    elif config.get("region_names") and not dataset.regions:
        raise ConfigError(
            "the bundle is for regions that overlap, the data have none",
            file=dataset.root,
            received=list(dataset.labels),
            expected=config["region_names"],
            remedy=f"start from unet_{spatial_dims}d, or plan for these data",
        )
    if dataset.n_groups < config.get("folds", 0):
        found["folds"] = dataset.n_groups  # few images: leave one out
    if config.get("planned"):
        return found
    chosen = dataset.cases[:: math.ceil(len(dataset.cases) / MAX_HEADERS)]
    headers = [read_header(case.images[0], **asdict(dataset.read_options)) for case in chosen]
    geometries = [header.geometry for header in headers]
    sizes = np.array([geometry.shape for geometry in geometries], dtype=float)
    if spatial_dims == 3:
        spacings = np.array([in_ras_order(geometry.spacing_mm, geometry) for geometry in geometries])
        spacing = [float(f"{value:.4g}") for value in np.median(spacings, axis=0)]
        found["spacing_mm"] = spacing
        sizes = np.array([in_ras_order(geometry.shape, geometry) for geometry in geometries]) * spacings / spacing
    if config["network_def"].get("padding", "same") == "same":
        levels = len(config["network_def"]["channels"]) - 1
        found["patch_size"] = fit_patch(
            np.median(sizes, axis=0), voxels=math.prod(config["patch_size"]), multiple=2**levels
        )
    return {id_: value for id_, value in found.items() if config.get(id_) != value}


def fit_patch(size: Sequence[float], *, voxels: int, multiple: int) -> list[int]:
    """The patch of at most this many voxels that covers most of an image of this size.

    Args:
        size: voxels of the image along each axis.
        voxels: budget.
        multiple: every edge is a multiple of this.

    Example:
        >>> fit_patch([35, 50, 34], voxels=40 * 56 * 40, multiple=8)
        [40, 56, 40]
        >>> fit_patch([512, 512, 100], voxels=64**3, multiple=16)
        [64, 64, 64]
    """
    patch = [math.ceil(edge / multiple) * multiple for edge in size]
    while math.prod(patch) > voxels and max(patch) > multiple:
        patch[patch.index(max(patch))] -= multiple
    return patch


def in_ras_order(values: Sequence[float], geometry: Geometry) -> list[float]:
    """Values of the grid's axes in the order that the axes have after reorientation to RAS.

    Example:
        >>> axes_are_s_r_a = np.array([[0, 1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
        >>> in_ras_order([3, 1, 2], Geometry(axes_are_s_r_a, (9, 9, 9)))
        [1, 2, 3]
    """
    axes = nib.orientations.io_orientation(geometry.affine)[:, 0].astype(int)
    return [value for _, value in sorted(zip(axes.tolist(), values, strict=True))]
