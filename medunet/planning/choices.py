"""Decisions that follow from the data, not from the cost of a step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medunet.datasets.layouts.orientation import anonymous, mirror_faults
from medunet.transforms import IGNORE_INDEX

from .adapt import BENDS, IGNORED, TURNS, region_loss
from .fingerprint import Fingerprint
from .measure import AIR
from .topology import ANISOTROPY, Decision

CROP_SHARE = 0.75  # images are cropped if the box around the body, or around everything that is not 0, is smaller
BODY_MARGIN = 8  # voxels on each side of the box, as `steps::crop_body` of configs/3d.yaml has it
THICK_BACKGROUND = 0.5  # with more foreground than this the background is thin and counts in Dice as a class
RARE_FOREGROUND = 0.05  # 2D images with less foreground: half of the patches are centred on it, as always in 3D
TURN = 0.35  # radians, 20 degrees: patients lie almost straight
FLIP_AXES = "augment::deform::flip_axes"
CHEAP_VOXELS = 2_000_000  # voxels of all views of the median image; about a second on two cores
THIN = 4.0  # voxels; the border of a thinner class between voxels decides about its Dice
ENLARGED = (1.15, 1.3)  # enlarged views of a small volume: the upper end of `scale_range`, and a little more
BENT_SHARE = 1 / 3  # of the thinnest thickness; control points that move by more tear the structure
CONTRAST_STEPS = 7_000  # 960 and 2,000 steps lose 0.005 and 0.004 of Dice by random contrast (hippocampus)
ENGINE_IDS = frozenset(["mirror_axes", "mirror_swaps", "tta_axes", "view_scales"])  # ids that train.json does not have


def normalisation(data: Fingerprint) -> Decision:
    """Normalise CT by fixed numbers, because Hounsfield units are absolute, and other images one by one."""
    rules = [
        {"low": c.low, "high": c.high, "mean": c.mean, "std": c.std} if c.kind == "CT" and c.std > 0 else None
        for c in data.channels
    ]
    kinds = "; ".join(f"{c.name}: {c.kind}, {c.reason}" for c in data.channels)
    if not any(rules):
        value: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
        reason = "each channel of each image by its own mean and deviation, because the scale differs between images"
        if data.crop_share < CROP_SHARE:
            value["nonzero"] = True
            reason += f"; zeros do not count: everything else takes {100 * data.crop_share:.0f} % of the median image"
        return Decision("steps::normalize", value, reason, kinds)
    reason = "CT: clipped to the 0.5 and 99.5 percentiles of the foreground, then its mean 0 and deviation 1"
    first = rules[0]
    if len(rules) == 1 and first is not None and first["low"] < first["high"]:
        low, high, mean, std = first["low"], first["high"], first["mean"], first["std"]
        ends = {"b_min": round((low - mean) / std, 6), "b_max": round((high - mean) / std, 6)}
        value = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": low, "a_max": high, **ends, "clip": True}
        numbers = f"{kinds}; {low:g} to {high:g}, mean {mean:g}, deviation {std:g}"
        return Decision("steps::normalize", value, reason, numbers)
    value = {"_target_": "medunet.transforms.NormalizeChannelsd", "keys": "image", "channels": rules}
    return Decision("steps::normalize", value, reason + "; other channels per image", kinds)


def intensity(data: Fingerprint, config: Mapping[str, Any], steps: int) -> list[Decision]:
    """Change shading, contrast and sharpness of volumes, unless intensities are absolute or steps are few."""
    kinds = ", ".join(f"{channel.name}: {channel.kind}" for channel in data.channels)
    is_absolute = any(channel.kind == "CT" for channel in data.channels)
    if "bias" not in config["augment"] or is_absolute or data.objects or steps < CONTRAST_STEPS:
        return []
    values: dict[str, Any] = {"contrast_steps": [f"@augment#{name}" for name in ("bias", "gamma", "blur")]}
    values |= {"augment::noise::std": [0.0, 0.3], "augment::noise::prob": 0.15}
    reason = "scanners and sequences differ; such changes cost Dice in short training runs, and are wrong for CT"
    return [Decision(id_, value, reason, f"{kinds}; {steps:,} steps") for id_, value in values.items()]


def cropping(data: Fingerprint) -> list[Decision]:
    """Crop volumes to the body, or to nonzero voxels, if much of them is air or zeros."""
    if (box := _box(data)) is None:
        return []
    if box == "body":
        name, threshold, why = "the body", AIR, "air is not above it"
        numbers = f"the box around everything above {AIR:g} HU takes {100 * data.body_share:.0f} % of the median image"
    else:
        name, threshold, why = "what is not 0", 0.0, "as after removing everything but the brain"
        numbers = f"the box around everything that is not 0 takes {100 * data.crop_share:.0f} % of the median image"
    reason = f"images are cropped to {name}, in training and prediction alike; what is outside is background"
    return [
        Decision("crop_steps", ["@steps#crop_body"], reason, numbers),
        Decision("body_threshold", threshold, why, numbers),
    ]


def _box(data: Fingerprint) -> Literal["body", "nonzero"] | None:
    if data.spatial_dims != 3:
        return None
    if all(channel.kind == "CT" for channel in data.channels) and data.body_share < CROP_SHARE:
        return "body"
    return "nonzero" if data.crop_share < CROP_SHARE else None


def cropped_shapes(data: Fingerprint) -> tuple[tuple[int, ...], ...]:
    """Return the voxels along each axis per case, after cropping (margin included)."""
    box = _box(data)
    if box is None:
        return data.shapes
    return tuple(
        tuple(min(edge + 2 * BODY_MARGIN, whole) for edge, whole in zip(part, shape, strict=True))
        for part, shape in zip(data.body_shapes if box == "body" else data.crop_shapes, data.shapes, strict=True)
    )


def mirroring(data: Fingerprint, *, flat_axis: int | None = None) -> list[Decision]:
    """Mirror only if that makes no label wrong, or if left and right labels can be swapped."""
    names = ", ".join(data.class_names)
    if data.side_pairs:
        return _mirroring_of_sides(data, flat_axis=flat_axis)
    if data.orientation_words:
        named = ", ".join(f"{name} ('{word}')" for name, word in data.orientation_words.items())
        return [Decision(FLIP_AXES, [], "off: names of labels have words for directions", named)]
    classes = {"background": -1, **{name: index for index, name in enumerate(data.regions)}}
    if data.placed and anonymous(classes if data.regions else data.labels):
        return [Decision(FLIP_AXES, [], "off: several classes have no names; two of them may be left and right", names)]
    axes = [axis for axis in range(data.spatial_dims) if axis != flat_axis]
    return [Decision(FLIP_AXES, axes, "on: no name of a label has a word for a direction", names)]


def _mirroring_of_sides(data: Fingerprint, *, flat_axis: int | None) -> list[Decision]:
    """Mirror from left to right, if the files store that axis and each sided label has a counterpart."""
    named = ", ".join(f"{left} / {right}" for left, right in data.side_pairs)
    numbers, obstacle = named, ""
    if data.spatial_dims != 3 or not data.placed:
        obstacle = "and the files do not say which axis that is"
    elif flat_axis == 0:
        obstacle = "across the planes"
    elif data.regions:
        obstacle = "and regions overlap, so their values cannot be swapped"
    elif faults := mirror_faults(data.labels):
        obstacle = "and some labels have no counterpart to be swapped with"
        numbers = f"{named}; " + ", ".join(f"{name} ('{word}')" for name, word in faults.items())
    if obstacle:
        return [Decision(FLIP_AXES, [], f"off: a mirror would turn left into right, {obstacle}", numbers)]
    names = list(data.labels)
    swaps = [[names.index(left), names.index(right)] for left, right in data.side_pairs]
    reason = "on from left to right only, because labels of the two sides are swapped"
    return [
        Decision(FLIP_AXES, [0], reason, f"labels {named}"),
        Decision("augment::deform::swap_labels", swaps, "class indices that are swapped in mirrored patches", named),
        Decision("mirror_swaps", swaps, "channels that are swapped if `mirror_axes` mirrors images", named),
    ]


def views(
    data: Fingerprint, size: Sequence[int], spacing_mm: Sequence[float], *, flips: Sequence[int], flat: bool = False
) -> list[Decision]:
    """Average predictions over several views of an image, if images are so small that it costs little."""
    decisions = []
    voxels = 2 ** len(flips) * math.prod(size)
    if flips and voxels <= CHEAP_VOXELS:
        reason = "predictions are the mean over mirrored views, which cost little because images are small"
        numbers = f"{2 ** len(flips)} views of the median image have {voxels:,} voxels"
        decisions.append(Decision("mirror_axes", list(flips), reason, numbers))
    thinnest = data.thinnest
    if data.spatial_dims == 3 and not flat and thinnest is not None:
        thick = thinnest.thickness_mm / min(spacing_mm)
        if thick < THIN and voxels * (1 + sum(scale**3 for scale in ENLARGED)) <= CHEAP_VOXELS:
            reason = "predictions are the mean over the image and enlarged views, which find borders between voxels"
            numbers = f"{thinnest.name} is {thick:.1f} voxels thick; the median image has {math.prod(size):,} voxels"
            decisions.append(Decision("view_scales", [1.0, *ENLARGED], reason, numbers))
    return decisions


def deformation_2d(data: Fingerprint) -> list[Decision]:
    """Rotate images with directions only slightly, and centre patches on foreground if it is rare."""
    decisions = []
    if {c.kind for c in data.channels} & {"CT", "MR"} or data.orientation_words or data.side_pairs:
        decisions.append(Decision(TURNS, TURN, "images of patients, or labels with directions: rotated only slightly"))
    if is_rare := data.foreground_share < RARE_FOREGROUND:
        numbers = f"foreground {100 * data.foreground_share:.2g} % of the pixels"
        reason = "foreground is rare: half of the patches are centred on it"
        decisions.append(Decision("augment::deform::foreground_prob", 0.5, reason, numbers))
    if data.ignore is not None:
        reason, numbers = "patches are centred on annotated pixels", f"ignored value {data.ignore}"
    if is_rare or data.ignore is not None:
        decisions.append(Decision("augment::deform::foreground_key", "label", reason, numbers))
    return decisions


def deformation_3d(
    data: Fingerprint, deform: Mapping[str, Any], spacing_mm: Sequence[float], flat_axis: int | None
) -> list[Decision]:
    """Rotate and bend patches without mixing planes that are far apart, or tearing thin structures."""
    finest, coarsest = min(spacing_mm), max(spacing_mm)
    sigma = deform.get("elastic_sigma", 2.0)
    sigma = 2.0 if isinstance(sigma, list) else float(sigma)
    reason, numbers = "", ""
    if (thinnest := data.thinnest) is not None and BENT_SHARE * (thick := thinnest.thickness_mm / finest) < sigma:
        sigma = round(BENT_SHARE * thick, 2)
        reason = "thin structures are bent by at most a third of their thickness"
        numbers = f"{thinnest.name} is {thick:.1f} voxels thick"
    if flat_axis is None and coarsest <= ANISOTROPY * finest:
        return [Decision(BENDS, sigma, reason, numbers)] if reason else []
    axis = flat_axis if flat_axis is not None else list(spacing_mm).index(coarsest)
    apart = f"spacing {' x '.join(f'{value:g}' for value in spacing_mm)} mm"
    why = "the planes are far apart: rotated within them only" if flat_axis is None else "rotated within the plane"
    turns = [TURN if k == axis else 0.0 for k in range(3)]
    bends = [0.0 if k == axis else round(sigma * finest / width, 3) for k, width in enumerate(spacing_mm)]
    reason = "; ".join(filter(None, ["bent within the planes only", reason]))
    numbers = "; ".join(filter(None, [apart, numbers]))
    return [Decision(TURNS, turns, why, apart), Decision(BENDS, bends, reason, numbers)]


def loss(data: Fingerprint, base: Mapping[str, Any]) -> list[Decision]:
    """Count the background in the bundle's loss if the background is thin, and leave out ignored voxels."""
    inner = base["loss"] if isinstance(base.get("loss"), Mapping) else None
    share, ignore = data.foreground_share, data.ignore
    is_thin = share > THICK_BACKGROUND
    reason = f"Dice and cross entropy; the background counts {'as a class' if is_thin else 'in the cross entropy only'}"
    numbers = f"foreground {100 * share:.3g} % of the voxels"
    part = {**(base if inner is None else inner), "include_background": is_thin}
    if data.regions:
        reason = "Dice and binary cross entropy of each region, because regions overlap"
        part = region_loss(ignore)
    elif ignore is not None:
        part = {"include_background": is_thin, "batch": True, "ignore_index": IGNORE_INDEX}
        part = {"_target_": "medunet.losses.DiceCELoss", **part}
    decisions = []
    if ignore is not None:
        reason += f"; voxels labelled {ignore} do not count"
        numbers += f", ignored value {ignore}"
        decisions = [Decision(IGNORED, ignore, f"voxels labelled {ignore} are not annotated")]
    return [Decision("loss", part if inner is None else {**base, "loss": part}, reason, numbers), *decisions]
