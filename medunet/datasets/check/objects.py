"""Objects of a label map: their number, sizes and contacts, and what is wrong with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from medunet.datasets.layouts.labels import count_pieces
from medunet.io.objects import Objects

from .finding import Finding, shown

PERCENTILES = (5, 50, 95)  # of the sizes
SIZES = ("small_voxels", "median_voxels", "large_voxels")  # names of these percentiles
HALF = 0.5  # share of the image above which an object that reaches all sides is taken for the background
MIN_NEAR = 50  # objects near the border; without one that touches it, those at the border seem to be unlabelled


@dataclass(frozen=True)
class ObjectFigures:
    """Objects of one label map."""

    sizes: tuple[int, ...]  # voxels of each object
    touching: int  # objects with a voxel beside a voxel of another one
    in_pieces: tuple[int, ...]  # numbers of the objects that are not connected
    at_border: int  # objects that touch the border of the image
    near_border: int  # other objects that are nearer to it than their own extent
    background: int | None = None  # number of the object that seems to be the background

    def as_dict(self) -> dict[str, int | float]:
        """Return the values for JSON."""
        median = float(np.median(self.sizes)) if self.sizes else 0.0
        return {"count": len(self.sizes), "median_voxels": median, "touching": self.touching}


def measure_objects(numbers: Objects) -> ObjectFigures:
    """Measure a map ``(*spatial)`` of object numbers."""
    counts = np.bincount(numbers.ravel())  # numbers are small enough for tables, which are faster than sorting
    values = np.flatnonzero(counts[1:]) + 1
    lookup = np.zeros(len(counts), np.int32)
    lookup[values] = np.arange(1, len(values) + 1)
    indices, sizes = lookup[numbers], counts[values]
    touching: set[int] = set()
    for axis in range(indices.ndim):
        ahead, behind = np.moveaxis(indices, axis, 0)[1:], np.moveaxis(indices, axis, 0)[:-1]
        contact = (ahead != behind) & (ahead > 0) & (behind > 0)
        touching.update(ahead[contact].tolist(), behind[contact].tolist())
    at_border = near_border = 0
    background = None
    for number, box in enumerate(ndimage.find_objects(indices), start=1):
        axes = [(part, edge) for part, edge in zip(box, indices.shape, strict=True) if edge > 1]
        gaps = [(min(part.start, edge - part.stop), part.stop - part.start) for part, edge in axes]
        at_border += any(gap == 0 for gap, _ in gaps)
        near_border += all(gap > 0 for gap, _ in gaps) and any(gap <= extent for gap, extent in gaps)
        if len(values) > 1 and sizes[number - 1] > HALF * indices.size and all(p.stop - p.start == n for p, n in axes):
            background = int(values[number - 1])
    pieces = count_pieces(indices)
    return ObjectFigures(
        sizes=tuple(sizes.tolist()),
        touching=len(touching),
        in_pieces=tuple(values[pieces[1:] > 1].tolist()),
        at_border=at_border,
        near_border=near_border,
        background=background,
    )


def check_objects(figures: ObjectFigures, numbers: Objects, *, file: Path, case: str) -> list[Finding]:
    """Return warnings about the objects of one label map."""

    def warning(cause: str, remedy: str) -> Finding:
        return Finding("warning", str(file), cause, remedy, case=case)

    findings = []
    if figures.background is not None:
        cause = f"object {figures.background} fills more than half of the image and reaches all of its sides"
        findings.append(warning(cause, "set the background to 0"))
    if n_split := len(figures.in_pieces):
        listed = shown([str(number) for number in figures.in_pieces])
        remedy = "give each piece its own number, unless the pieces belong together"
        if numbers.max() == np.iinfo(np.uint8).max:
            remedy = "save 16-bit labels: in 8 bits the numbers above 255 repeat lower ones"
        cause = f"{n_split} of {len(figures.sizes)} objects are in several pieces: {listed}"
        findings.append(warning(cause, remedy))
    if single := sum(size == 1 for size in figures.sizes):
        cause = f"{single} of {len(figures.sizes)} objects have one voxel only"
        findings.append(warning(cause, "remove them if they are strays of annotation"))
    return findings


def object_figures(cases: Sequence[ObjectFigures], spacings_mm: Sequence[Sequence[float]] = ()) -> dict[str, float]:
    """Return figures of all objects of a data set.

    Args:
        cases: figures of each case.
        spacings_mm: spacing of each case; empty if the files do not state it.
    """
    counts = [len(case.sizes) for case in cases]
    total = sum(counts)
    figures: dict[str, float] = {
        "count": total,
        "fewest_per_image": min(counts),
        "median_per_image": float(np.median(counts)),
        "most_per_image": max(counts),
        "images_without": counts.count(0),
        "touching_fraction": sum(case.touching for case in cases) / max(total, 1),
    }
    if total:
        voxels = np.concatenate([case.sizes for case in cases])
        figures |= dict(zip(SIZES, np.percentile(voxels, PERCENTILES).tolist(), strict=True))
        if spacings_mm:
            scales = np.repeat([math.prod(spacing) for spacing in spacings_mm], counts)
            figures[f"median_mm{len(spacings_mm[0])}"] = float(np.median(voxels * scales))
    return figures


def compare_objects(cases: Sequence[ObjectFigures]) -> list[Finding]:
    """Return findings that need all cases."""
    near = sum(case.near_border for case in cases)
    if near < MIN_NEAR or any(case.at_border for case in cases):
        return []
    cause = f"no object touches the border of an image, though {near} are near it: those at the border look unlabelled"
    return [Finding("warning", "", cause, "label them, too, or crop the images")]
