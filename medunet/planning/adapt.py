"""Overlays that fit a bundle, or a preset of a planned bundle, to a data set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import nibabel as nib
import numpy as np

from medunet.config import get_id
from medunet.datasets import Case, SegmentationDataset
from medunet.datasets.layouts.datalist import sample_cases
from medunet.errors import ConfigError
from medunet.geometry import Geometry
from medunet.io import read_header
from medunet.transforms import IGNORE_INDEX, InstanceTarget

TURNS = "augment::deform::rotate_range"
BENDS = "augment::deform::elastic_sigma"
DEFAULT_TARGET: InstanceTarget = "distance"
SEPARATION = ("steps::weight", "label_steps", "patch_keys", "patch_modes", "loss", "loss_keys")
"""Ids of presets for class labels that would replace what separates objects."""

_LOSSES: dict[InstanceTarget, tuple[dict[str, Any], list[str]]] = {
    "gap": ({"_target_": "medunet.losses.BorderWeightedCELoss", "reduction": "weighted_mean"}, ["weight"]),
    "border": ({"_target_": "medunet.losses.DiceCELoss"}, []),
    "distance": (
        {"_target_": "medunet.losses.DistanceLoss", "n_classes": "$len(@class_names)"},
        ["distance", "weight"],
    ),
}
IGNORED = "steps::encode::ignore_value"


def adapt(dataset: SegmentationDataset, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overlay that fits a bundle to a data set: channels, classes, regions, spacing and patch size.

    The spacing is the median over the cases. The patch has the shape of the median image at that spacing, and about as
    many voxels as the bundle's. A planned bundle keeps its values.

    Args:
        dataset: Data set to train on.
        config: The bundle's unresolved `train.json`.

    Returns:
        The values that differ from those of the bundle.

    Raises:
        ConfigError: The bundle is for images of other dimensions, channels or classes, or does not ignore the voxels
            without annotation.
    """
    dims = config["spatial_dims"]
    if config.get("instances") and not dataset.instances:
        remedy = 'declare them: `"instances": true` in dataset.json'
        raise ConfigError("the bundle is for labels that number objects", file=dataset.root, remedy=remedy)
    if dataset.spatial_dims != dims:
        cause = f"the bundle is {dims}-D, the images are {dataset.spatial_dims}-D"
        raise ConfigError(cause, file=dataset.root, remedy=f"use unet_{dataset.spatial_dims}d")
    if dataset.ignore is not None and get_id(config, IGNORED) != dataset.ignore:
        cause = f"the data have voxels without annotation ({dataset.ignore}), which the bundle does not ignore"
        raise ConfigError(cause, file=dataset.root, remedy="plan for these data: `medunet plan`")
    values: dict[str, Any] = {
        "in_channels": len(dataset.channels),
        "label_values": list(dataset.labels.values()),
        "label_names": list(dataset.labels),
    }
    if dataset.instances:
        values["instances"] = True
    if dataset.regions or config.get("region_names"):
        values |= region_values(dataset)
    count = len(dataset.split) or min(dataset.n_groups, config.get("folds", 0))  # with few cases leave one out
    folds = {"folds": count} if count != config.get("folds", 0) else {}
    if config.get("planned"):
        for id_ in ("in_channels", "label_values", "region_values", "regions_class_order", "instances"):
            if id_ in values and values[id_] != config.get(id_):
                cause, remedy = f"the bundle was planned for data with other {id_}", "plan again for these data"
                planned = config.get(id_)
                raise ConfigError(cause, file=dataset.root, received=values[id_], expected=planned, remedy=remedy)
        return folds
    if dataset.instances and not config.get("instances"):
        is_weighted = config.get("loss_keys") == ["weight"]  # as the paper separates objects
        values |= instance_values("gap" if is_weighted else DEFAULT_TARGET)
    if dataset.regions and not config.get("region_names"):
        values["loss"] = region_loss()
    elif config.get("region_names") and not dataset.regions:
        cause, remedy = "the bundle is for overlapping regions, the data have none", f"start from unet_{dims}d"
        expected = config["region_names"]
        raise ConfigError(cause, file=dataset.root, received=list(dataset.labels), expected=expected, remedy=remedy)
    values |= folds | _grid(dataset, config)
    # a preset may set these ids, too
    always = SEPARATION if dataset.instances else ()
    return {id_: value for id_, value in values.items() if config.get(id_) != value or id_ in always}


def _grid(dataset: SegmentationDataset, config: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    geometries = [grid_of(case, dataset) for case in sample_cases(dataset.cases)]
    sizes = np.array([geometry.shape for geometry in geometries], dtype=float)
    if config["spatial_dims"] == 3:
        spacings = np.array([in_ras_order(geometry.spacing_mm, geometry) for geometry in geometries])
        values["spacing_mm"] = [float(f"{value:.4g}") for value in np.median(spacings, axis=0)]
        sizes = np.array([in_ras_order(geometry.shape, geometry) for geometry in geometries])
        sizes = sizes * spacings / values["spacing_mm"]
    if config["network_def"].get("padding", "same") == "same":
        multiple = 2 ** (len(config["network_def"]["channels"]) - 1)
        voxels = math.prod(config["patch_size"])
        values["patch_size"] = fit_patch(np.median(sizes, axis=0), voxels=voxels, multiple=multiple)
    return values


def grid_of(case: Case, dataset: SegmentationDataset) -> Geometry:
    """Return the grid of a case's first image, from its header."""
    return read_header(case.images[0], **asdict(dataset.read_options)).geometry


def fit_patch(size: Sequence[float], *, voxels: int, multiple: int) -> list[int]:
    """Return the patch of at most `voxels` voxels that covers most of an image.

    Args:
        size: Voxels of the image along each axis.
        voxels: Largest number of voxels.
        multiple: Divisor of every edge.

    Examples:
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
    """Return values of the grid's axes in the order that the axes have after reorientation to RAS."""
    axes = nib.orientations.io_orientation(geometry.affine)[:, 0].astype(int)
    return [value for _, value in sorted(zip(axes.tolist(), values, strict=True))]


def region_values(dataset: SegmentationDataset) -> dict[str, Any]:
    """Return the values that describe overlapping classes; empty lists if the data set has none."""
    return {
        "region_names": [region.name for region in dataset.regions],
        "region_values": [list(region.values) for region in dataset.regions],
        "regions_class_order": [region.written for region in dataset.regions],
    }


def region_loss(ignore: int | None = None) -> dict[str, Any]:
    """Return the loss of a bundle with region channels; it ignores voxels if `ignore` is given."""
    loss = {"_target_": "medunet.losses.RegionDiceCELoss", "regions": "@region_indices", "batch": True}
    return loss if ignore is None else {**loss, "ignore_index": IGNORE_INDEX}


def instance_values(target: InstanceTarget, *, reach: float | None = None) -> dict[str, Any]:
    """Return the overlay that makes a bundle for class labels one for objects.

    Args:
        target: What separates touching objects.
        reach: For `distance`, the distance in voxels that counts as 1. Default: that of `InstanceTargetsd`.

    Raises:
        ConfigError: Unknown target.
    """
    if target not in _LOSSES:
        raise ConfigError("unknown target of instances", received=target, expected=", ".join(_LOSSES))
    loss, loss_keys = _LOSSES[target]
    step = {} if reach is None else {"steps::target::reach": reach}
    return {
        "instances": True,
        "instance_target": target,
        "label_steps": [],
        "patch_keys": ["image", "label"],
        "patch_modes": ["bilinear", "nearest"],
        "loss": loss,
        "loss_keys": loss_keys,
        **step,
    }


def fit_preset(preset: Mapping[str, Any], values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preset that respects a plan: its axes of rotation, its deformation, regions and ignored voxels.

    Args:
        preset: Overlay for any data.
        values: Overlay of the plan.
        base: Unresolved `train.json` of the bundle before it was planned.

    Examples:
        >>> base = {"augment": {"deform": {"elastic_sigma": 2.0}}}
        >>> thick_slices = {TURNS: [0.0, 0.0, 0.35], BENDS: [2.0, 2.0, 0.0]}
        >>> fitted = fit_preset({TURNS: [0.5, 0.5, 0.5], BENDS: 3.0}, thick_slices, base)
        >>> fitted[TURNS], fitted[BENDS]
        ([0.0, 0.0, 0.5], [3.0, 3.0, 0.0])
        >>> fit_preset({BENDS: 3.0}, {BENDS: 0.7}, base)[BENDS]
        1.05
    """
    fitted = dict(preset)
    turns, bends = values.get(TURNS), values.get(BENDS)
    if TURNS in fitted and isinstance(turns, list):
        fitted[TURNS] = [wide if planned else 0.0 for wide, planned in zip(fitted[TURNS], turns, strict=True)]
    if BENDS in fitted and bends is not None:
        factor = fitted[BENDS] / get_id(base, BENDS)
        fitted[BENDS] = np.round(np.multiply(factor, bends), 3).tolist()
    if values.get("region_names"):
        fitted.pop("loss", None)
    if values.get("instances"):
        fitted = {id_: value for id_, value in fitted.items() if id_ not in SEPARATION}
    if IGNORED in values:
        for id_ in {"loss", "steps::weight"} & fitted.keys():
            fitted[id_] = {**fitted[id_], "ignore_index": IGNORE_INDEX}
    return fitted
