"""The choice of what separates touching objects, and of what makes their images alike."""

import math
from dataclasses import replace

from medunet.transforms import InstanceTarget
from medunet.transforms.instances import diameter_of

from .adapt import DEFAULT_TARGET, instance_values
from .fingerprint import Fingerprint
from .topology import CPU_2D, MAX_COARSENING, Budget, Decision, Spacing

RARE_CONTACT = 0.01  # share of objects that touch another; below it, objects are separated by background anyway
REACH_SHARE = 0.25  # of an object's diameter: half of its radius, so that the middle of an object is a plateau
REACH = (2.0, 10.0)  # pixels; less has too few steps, more depends on voxels far away
RARE_KIND = 0.02  # share of the images below which a kind of background does not count
MATCHING = 0.95  # smallest share of the images with dark objects on a bright background, or the reverse
OBJECTS_ALONG = 6  # median objects along a patch's edge of 2D images on a CPU
LEAST_EDGE = 128  # pixels; for nuclei, twice the steps are better than patches of 256 (docs/benchmarks/quality.md)
LARGE_DIAMETER = 60.0  # pixels; if the median object of 2D images is larger, the images are made smaller


def shrinking(data: Fingerprint) -> tuple[float, str]:
    """Return the factor by which 2D images with large objects are made smaller, and the figures it follows from."""
    if not data.objects or len(set(data.spacings_mm)) > 1:
        return 1.0, ""
    diameter = diameter_of(data.objects["median_voxels"], 2)
    numbers = f"median diameter {diameter:.0f} pixels, at least {LARGE_DIAMETER:g} on the grid of the network"
    return round(min(max(diameter / LARGE_DIAMETER, 1.0), MAX_COARSENING), 2), numbers


def object_budget(budget: Budget, data: Fingerprint, factor: float) -> Budget:
    """Limit the patches of 2D images on a CPU to a few small objects: the same time then has more steps."""
    if not data.objects or budget != CPU_2D:
        return budget
    usual = math.isqrt(budget.patch_voxels)
    diameter = diameter_of(data.objects["median_voxels"], data.spatial_dims) / factor
    edge = round(min(max(OBJECTS_ALONG * diameter, LEAST_EDGE), usual))
    name = f"{budget.name} with objects of {diameter:.0f} pixels"
    sizes = {"batch_voxels": budget.batch_voxels * edge // usual, "min_edge": budget.min_edge * edge // usual}
    return replace(budget, patch_voxels=edge**2, **sizes, name=name)


def image_steps(data: Fingerprint, grid: Spacing) -> list[Decision]:
    """Prepare 2D images: smaller if objects are large, and with a dark background if only some have one."""
    steps, decisions, reasons, numbers = ["@steps#normalize"], [], [], ""
    if grid.factor > 1:
        steps, reasons = ["@steps#spacing", *steps], [grid.reason]
        decisions.append(Decision("steps::spacing::pixdim", list(grid.spacing_mm), grid.reason, grid.numbers))
    bright, matching = data.polarity
    if data.objects and RARE_KIND < bright < 1 - RARE_KIND and matching >= MATCHING:
        steps.insert(-1, "@steps#dark_background")
        reasons.append("images with dark objects on a bright background are negated, so that all images are alike")
        numbers = f"{100 * bright:.3g} % are bright; objects contrast with the background in {100 * matching:.3g} %"
    if reasons:
        decisions.append(Decision("image_steps", steps, "; ".join(reasons), numbers))
    return decisions


def instances(data: Fingerprint, factor: float = 1.0) -> list[Decision]:
    """Choose what separates touching objects from their sizes and contacts, on images smaller by `factor`."""
    objects = data.objects
    diameter = diameter_of(objects["median_voxels"], data.spatial_dims)
    touching = 100 * objects["touching_fraction"]
    numbers = f"{objects['count']:,.0f} objects, median diameter {diameter:.0f} pixels, {touching:.3g} % touch another"
    diameter /= factor
    if objects["touching_fraction"] < RARE_CONTACT:
        target: InstanceTarget = "gap"
        reason = "objects hardly touch: background separates them, with high weights where it is thin"
    else:
        target = DEFAULT_TARGET
        reason = "objects touch: the network also learns the distance to the border of the object"
    reach = round(min(max(REACH_SHARE * diameter, REACH[0]), REACH[1]), 1) if target == "distance" else None
    values = instance_values(target, reach=reach)
    reasons = {
        "instances": "the labels number objects",
        "objects::boundary": "until training chooses it on the validation cases",
        "steps::target::reach": "pixels from the border that count as the middle: half the radius of the median object",
        "loss": "Dice and cross entropy of the classes, cross entropy of the distance" if target == "distance" else "",
    }
    return [Decision(id_, value, reasons.get(id_) or reason, numbers) for id_, value in values.items()]
