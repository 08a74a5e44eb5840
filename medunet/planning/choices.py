"""Choices that follow from what the data are, not from what a step costs: intensities, mirroring, turning, the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medunet.transforms import IGNORE_INDEX

from .fingerprint import Fingerprint
from .measure import AIR
from .orientation import anonymous, mirror_faults
from .regions import region_loss
from .topology import ANISOTROPY, Decision

CROP_SHARE = 0.75
"""Where the box around all that is not 0 is smaller than this part, the zeros are no image (nnU-Net)."""

BODY_MARGIN = 8
"""Voxels on each side of the body that `crop_body` of configs/3d.yaml leaves."""

THICK_BACKGROUND = 0.5
"""Where the foreground takes more than this part, the background is thin and counts in Dice as a class of its own."""

RARE_FOREGROUND = 0.05
"""Images in the plane with less foreground than this: half of the patches are centred on it, as in 3D always."""

TURN = 0.35
"""Radians, 20 degrees: patients lie nearly straight."""


FLIP_AXES = "augment::deform::flip_axes"
"""The id of the axes along which patches are mirrored."""

CHEAP_VOXELS = 2_000_000
"""Voxels of all views of the median image that cost a prediction little: about a second on two cores."""

THIN = 4.0
"""Where the thinnest class is thinner than this, in voxels, its border between voxels decides about its Dice."""

ENLARGED = (1.15, 1.3)
"""Enlarged views of a small volume; about as large as training has shown it (`scale_range`), and a little more."""

BENT_SHARE = 1 / 3
"""Of the thinnest structure's thickness: control points that move by more tear it, and wrong borders are learnt."""

ENGINE_IDS = frozenset(["mirror_axes", "mirror_swaps", "view_scales"])
"""Values of evaluate.json and inference.json, which train.json lacks."""


def normalisation(print_: Fingerprint) -> Decision:
    """CT by fixed numbers, for Hounsfield units mean something; everything else image by image."""
    ways = [
        {"low": c.low, "high": c.high, "mean": c.mean, "std": c.std} if c.kind == "CT" and c.std > 0 else None
        for c in print_.channels
    ]
    kinds = "; ".join(f"{c.name}: {c.kind}, {c.reason}" for c in print_.channels)
    if not any(ways):
        nonzero = print_.crop_share < CROP_SHARE
        value = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
        reason = "each channel of each image by its own mean and deviation, for the scale differs between images"
        if nonzero:
            value |= {"nonzero": True}
            reason += f"; zeros do not count: all else takes {100 * print_.crop_share:.0f} % of the median image"
        return Decision("steps::normalize", value, reason, kinds)
    reason = "CT: clipped to the 0.5 and 99.5 percentiles of the foreground, then its mean 0 and deviation 1"
    first = ways[0]
    if len(ways) == 1 and first is not None:
        low, high, mean, std = first["low"], first["high"], first["mean"], first["std"]
        value = {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": round((low - mean) / std, 6),
            "b_max": round((high - mean) / std, 6),
            "clip": True,
        }
        numbers = f"{kinds}; {low:g} to {high:g}, mean {mean:g}, deviation {std:g}"
        if low < high:
            return Decision("steps::normalize", value, reason, numbers)
    value = {"_target_": "medunet.transforms.NormalizeChannelsd", "keys": "image", "channels": ways}
    return Decision("steps::normalize", value, reason + "; other channels image by image", kinds)


def cropping(print_: Fingerprint) -> list[Decision]:
    """Leave out the air around the body, or the zeros around the brain, in volumes where they take much of them."""
    box = _box(print_)
    reason = "images are cropped to {}, in training and prediction alike; what is outside is background"
    steps = ["@steps#crop_body"]
    if box == "body":
        numbers = f"the box around all above {AIR:g} HU takes {100 * print_.body_share:.0f} % of the median image"
        return [
            Decision("crop_steps", steps, reason.format("the body"), numbers),
            Decision("body_threshold", AIR, "air is not above it", numbers),
        ]
    if box == "nonzero":
        numbers = f"the box around all that is not 0 takes {100 * print_.crop_share:.0f} % of the median image"
        return [
            Decision("crop_steps", steps, reason.format("what is not 0"), numbers),
            Decision("body_threshold", 0.0, "as where a brain was cut out", numbers),
            Decision("steps::crop_body::select_fn::absolute", True, "negative values are image as well"),
        ]
    return []


def _box(print_: Fingerprint) -> Literal["body", "nonzero"] | None:
    """What images are cropped to."""
    if print_.spatial_dims != 3:
        return None
    if all(channel.kind == "CT" for channel in print_.channels) and print_.body_share < CROP_SHARE:
        return "body"
    return "nonzero" if print_.crop_share < CROP_SHARE else None


def kept_shapes(print_: Fingerprint) -> tuple[tuple[int, ...], ...]:
    """Voxels along each axis that are left of each case: where images are cropped the box with its margin."""
    box = _box(print_)
    if box is None:
        return print_.shapes
    boxes = print_.body_shapes if box == "body" else print_.crop_shapes
    return tuple(
        tuple(min(edge + 2 * BODY_MARGIN, whole) for edge, whole in zip(box, shape, strict=True))
        for box, shape in zip(boxes, print_.shapes, strict=True)
    )


def mirroring(print_: Fingerprint, *, flat_axis: int | None = None) -> list[Decision]:
    """Mirror only where no label becomes wrong by it, or where left and right labels can trade places."""
    axes = [axis for axis in range(print_.spatial_dims) if axis != flat_axis]
    id_, words = FLIP_AXES, print_.orientation_words
    if print_.side_pairs:
        return _mirroring_of_sides(print_, id_, flat_axis=flat_axis)
    if words:
        named = ", ".join(f"{name} ('{word}')" for name, word in words.items())
        return [Decision(id_, [], "off: names of labels speak of directions", named)]
    classes = {"background": -1, **{name: k for k, name in enumerate(print_.regions)}}
    if print_.placed and anonymous(classes if print_.regions else print_.labels):
        names = ", ".join(print_.class_names)
        return [Decision(id_, [], "off: several classes without names; two of them may be left and right", names)]
    return [Decision(id_, axes, "on: no label's name speaks of a direction", ", ".join(print_.class_names))]


def _mirroring_of_sides(print_: Fingerprint, id_: str, *, flat_axis: int | None) -> list[Decision]:
    """From left to right only, where the files say which axis that is and every sided label has its partner."""
    named = ", ".join(f"{left} / {right}" for left, right in print_.side_pairs)
    off = "off: a mirror would turn left into right"
    if print_.spatial_dims != 3 or not print_.placed:
        return [Decision(id_, [], f"{off}, and pictures do not say which axis that is", named)]
    if flat_axis == 0:
        return [Decision(id_, [], f"{off}, across the planes", named)]
    if print_.regions:
        return [Decision(id_, [], f"{off}, and regions overlap, so that their values cannot trade places", named)]
    if faults := mirror_faults(print_.labels):
        lonely = ", ".join(f"{name} ('{word}')" for name, word in faults.items())
        return [Decision(id_, [], f"{off}, and some have no partner to trade places with", f"{named}; {lonely}")]
    names = list(print_.labels)
    swaps = [[names.index(left), names.index(right)] for left, right in print_.side_pairs]
    numbers = f"labels {named}"
    return [
        Decision(
            id_, [0], "on from left to right, for labels of the two sides trade places; the body has no other", numbers
        ),
        Decision("augment::deform::swap_labels", swaps, "class indices that trade places in mirrored patches", numbers),
        Decision("mirror_swaps", swaps, "channels that trade places where `mirror_axes` mirrors images", numbers),
    ]


def views(
    print_: Fingerprint, size: Sequence[int], spacing_mm: Sequence[float], *, flips: Sequence[int], flat: bool = False
) -> list[Decision]:
    """Predictions as the mean over several views of an image, where images are so small that it costs nothing.

    Args:
        print_: of the data.
        size: voxels of the median image along each axis.
        spacing_mm: of these voxels.
        flips: axes that are mirrored in training.
        flat: whether the network works in planes of volumes.
    """
    decisions = []
    voxels = 2 ** len(flips) * math.prod(size)
    if flips and voxels <= CHEAP_VOXELS:
        reason = "predictions are the mean over mirrored views, which cost little: images are small"
        numbers = f"{2 ** len(flips)} views of the median image hold {voxels:,} voxels"
        decisions.append(Decision("mirror_axes", list(flips), reason, numbers))
    thinnest = print_.thinnest
    if print_.spatial_dims == 3 and not flat and thinnest is not None:
        thick = thinnest.thickness_mm / min(spacing_mm)
        if thick < THIN and voxels * (1 + sum(scale**3 for scale in ENLARGED)) <= CHEAP_VOXELS:
            reason = "predictions are the mean over the image and enlarged views: borders are found between voxels"
            numbers = f"{thinnest.name} is {thick:.1f} voxels thick; the median image holds {math.prod(size):,} voxels"
            decisions.append(Decision("view_scales", [1.0, *ENLARGED], reason, numbers))
    return decisions


def turning(
    print_: Fingerprint, deform: Mapping[str, Any], spacing_mm: Sequence[float], *, flat_axis: int | None = None
) -> list[Decision]:
    """Rotation and elastic deformation that do not mix planes which lie far apart."""
    prefix = "augment::deform::"
    decisions = []
    if print_.spatial_dims == 2:
        straight = {c.kind for c in print_.channels} & {"CT", "MR"} or print_.orientation_words or print_.side_pairs
        if straight:
            reason = "images of patients, or labels with directions: only slightly turned"
            decisions.append(Decision(f"{prefix}rotate_range", TURN, reason))
        if is_rare := print_.foreground_share < RARE_FOREGROUND:
            numbers = f"foreground {100 * print_.foreground_share:.2g} % of the pixels"
            reason = "foreground is rare: half of the patches are centred on it"
            decisions.append(Decision(f"{prefix}foreground_prob", 0.5, reason, numbers))
        if print_.ignore is not None:
            reason, numbers = "patches are centred on annotated pixels", f"ignored value {print_.ignore}"
        if is_rare or print_.ignore is not None:
            decisions.append(Decision(f"{prefix}foreground_key", "label", reason, numbers))
        return decisions
    finest, coarsest = min(spacing_mm), max(spacing_mm)
    sigma = deform.get("elastic_sigma", 2.0)
    sigma = 2.0 if isinstance(sigma, list) else float(sigma)
    thinnest = print_.thinnest
    thick = math.inf if thinnest is None else thinnest.thickness_mm / finest
    reason, numbers = "", ""
    if thinnest is not None and BENT_SHARE * thick < sigma:
        sigma = round(BENT_SHARE * thick, 2)
        reason = "thin structures are bent by no more than a third of their thickness"
        numbers = f"{thinnest.name} is {thick:.1f} voxels thick"
    axis = flat_axis if flat_axis is not None else list(spacing_mm).index(coarsest)
    if flat_axis is None and coarsest <= ANISOTROPY * finest:
        return [Decision(f"{prefix}elastic_sigma", sigma, reason, numbers)] if reason else []
    apart = f"spacing {' x '.join(f'{value:g}' for value in spacing_mm)} mm"
    why = "the planes lie far apart: turned within them only" if flat_axis is None else "turned within the plane"
    turns = [TURN if k == axis else 0.0 for k in range(3)]
    decisions.append(Decision(f"{prefix}rotate_range", turns, why, apart))
    bends = [0.0 if k == axis else round(sigma * finest / width, 3) for k, width in enumerate(spacing_mm)]
    why = "; ".join(filter(None, ["bent within the planes only", reason]))
    decisions.append(Decision(f"{prefix}elastic_sigma", bends, why, "; ".join(filter(None, [apart, numbers]))))
    return decisions


def loss(print_: Fingerprint, base: Mapping[str, Any]) -> list[Decision]:
    """The bundle's loss with the background counted where it is thin, and with ignored voxels left out."""
    inner = base.get("loss") if isinstance(base.get("loss"), Mapping) else None
    part = dict(inner if inner is not None else base)
    share = print_.foreground_share
    thin = share > THICK_BACKGROUND
    reason = f"Dice and cross entropy; the background counts {'as a class' if thin else 'in the cross entropy only'}"
    if print_.regions:
        reason = "Dice and binary cross entropy of each region, for regions overlap"
    numbers = f"foreground {100 * share:.3g} % of the voxels"
    part["include_background"] = thin
    if print_.regions:
        part = region_loss(print_.ignore)
    elif print_.ignore is not None:
        part = {
            "_target_": "medunet.losses.DiceCELoss",
            "include_background": thin,
            "batch": True,
            "ignore_index": IGNORE_INDEX,
        }
    if print_.ignore is not None:
        reason += f"; voxels labelled {print_.ignore} count nowhere"
        numbers += f", ignored value {print_.ignore}"
    value = part if inner is None else {**base, "loss": part}
    decisions = [Decision("loss", value, reason, numbers)]
    if print_.ignore is not None:
        why = f"voxels labelled {print_.ignore} are not annotated"
        decisions.append(Decision("steps::encode::ignore_value", print_.ignore, why))
    return decisions
