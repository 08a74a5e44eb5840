"""Measurements of the structures in a label map, and their growth between two time points.

Surface, perimeter and diameters are those of the mesh that marching cubes (Lorensen and Cline 1987) or marching squares
lay halfway between voxels inside and outside. These are the definitions of PyRadiomics (van Griethuysen et al. 2017);
volume, standard deviation and percentiles are those of the Image Biomarker Standardisation Initiative (Zwanenburg et
al. 2020). Long and short axis are those of RECIST 1.1 (Eisenhauer et al. 2009).
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform
from skimage.measure import find_contours, marching_cubes

from .arrays import Array

PERCENTILES = {"min": 0, "p10": 10, "p25": 25, "median": 50, "p75": 75, "p90": 90, "max": 100}
SIZES = ("volume_mm3", "area_mm2", "area_px")  # the size of a structure in a volume, a 2D image and a picture
CORNERS = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1))  # of a cube

Points = npt.NDArray[np.float64]
Row = dict[str, Any]


def measure_labels(
    labels: Array,
    affine: npt.ArrayLike,
    structures: Mapping[str, Sequence[int]],
    *,
    objects: Mapping[int, str] | None = None,
    image: Array | None = None,
    unit: str = "mm",
) -> list[Row]:
    """Measure each structure of a label map.

    Args:
        labels: `(*spatial)`, 2D or 3D, without negative values.
        affine: 4x4, from voxel indices to RAS millimetres; shear is taken into account.
        structures: the values of each structure by name.
        objects: class by number, if the labels number objects; then each object is measured, and `structures` unused.
        image: intensities `(C, *spatial)`; None leaves them out.
        unit: `mm`, or `px` for a picture, which has neither a scale nor a place in a patient.

    Returns:
        A row per structure or object with the measurements that docs/reference/json.md lists. A structure that is
        absent has only a size, which is 0.

    Examples:
        >>> disc = np.hypot(*np.mgrid[-8:9, -8:9]) <= 6
        >>> (row,) = measure_labels(disc.astype(int), np.diag([2, 2, 1, 1]), {"disc": [1]})
        >>> [round(row[name], 1) for name in ("area_mm2", "long_axis_mm", "short_axis_mm", "perimeter_mm")]
        [452.0, 26.0, 26.0, 82.9]
    """
    matrix, dims = np.asarray(affine, dtype=np.float64), labels.ndim
    boxes = ndimage.find_objects(labels.astype(np.int32) + 1)  # of the values 0, 1, ...
    size = "volume_mm3" if dims == 3 else "area_mm2" if unit == "mm" else "area_px"
    named: list[tuple[Row, Sequence[int]]] = [({"structure": name}, values) for name, values in structures.items()]
    if objects is not None:
        named = [({"structure": name, "object": number}, [number]) for number, name in objects.items()]
    for head, values in named:
        row = head  # completed in place
        parts = [box for value in values if value < len(boxes) and (box := boxes[value]) is not None]
        row |= {size: 0.0, size.replace("_", "_uncertainty_"): 0.0}
        if not parts:
            continue
        sides = zip(*parts, strict=True)
        box = tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
        mask, start = np.isin(labels[box], values), np.array([side.start for side in box])
        row |= _shape(mask, matrix[:3, :dims], start, size)
        centre = np.mean(np.nonzero(mask), axis=1) + start
        row |= dict(zip("xyz", centre.tolist(), strict=False))
        if unit == "mm":
            place = matrix[:3, :dims] @ centre + matrix[:3, 3]
            row |= dict(zip(("right_mm", "anterior_mm", "superior_mm"), place.tolist(), strict=True))
        ends = zip(box, labels.shape, strict=True)
        row["is_cut_off"] = any(n > 1 and (side.start == 0 or side.stop == n) for side, n in ends)
        channels = () if image is None else image
        for number, channel in enumerate(channels, start=1):
            name, voxels = f"intensity_{number}" if len(channels) > 1 else "intensity", channel[box][mask].astype(float)
            row |= {f"{name}_mean": float(voxels.mean()), f"{name}_std": float(voxels.std())}
            found = np.percentile(voxels, list(PERCENTILES.values())).tolist()
            row |= {f"{name}_{key}": value for key, value in zip(PERCENTILES, found, strict=True)}
    return [row for row, _ in named]


def growth(before: Mapping[str, Any], after: Mapping[str, Any]) -> Row:
    """Return how the size and the long axis of a structure changed between two time points.

    The uncertainty of a change is the root of the sum of the squared uncertainties of both values, because the two
    borders are drawn independently. It covers a border that is displaced by half a voxel everywhere, and no other error
    of the segmentation. A change of the size that is larger `is_beyond_uncertainty`.

    Examples:
        >>> before = {"volume_mm3": 1000.0, "volume_uncertainty_mm3": 150.0}
        >>> after = {"volume_mm3": 1300.0, "volume_uncertainty_mm3": 200.0}
        >>> result = growth(before, after)
        >>> result["volume_change_percent"], result["volume_change_uncertainty_mm3"], result["is_beyond_uncertainty"]
        (30.0, 250.0, True)
    """
    size = next(name for name in SIZES if name in after)
    row: Row = {}
    for full in (size, f"long_axis_{size[-2:] if size == 'area_px' else 'mm'}"):
        name, _, unit = full.rpartition("_")
        first, second = before.get(full), after.get(full)
        row |= {f"{name}_before_{unit}": first, f"{name}_after_{unit}": second}
        if first is None or second is None:
            continue
        spread = math.hypot(*(one[f"{name}_uncertainty_{unit}"] for one in (before, after)))
        row |= {f"{name}_change_{unit}": second - first, f"{name}_change_uncertainty_{unit}": spread}
        row[f"{name}_change_percent"] = 100 * (second - first) / first if first else None
        if full == size:
            row["is_beyond_uncertainty"] = abs(second - first) > spread
    return row | {"is_cut_off": any(bool(one.get("is_cut_off")) for one in (before, after))}


def _shape(mask: Array, steps: Points, start: npt.NDArray[np.intp], size: str) -> Row:
    padded, dims, unit = np.pad(mask, 1), mask.ndim, "px" if size == "area_px" else "mm"
    voxel, lengths = float(np.sqrt(np.linalg.det(steps.T @ steps))), np.linalg.norm(steps, axis=0)
    row: Row = {size: int(mask.sum()) * voxel}
    # points halfway between neighbours inside and outside, by the axis along which these are neighbours
    halves = [np.argwhere(np.diff(padded, axis=axis)) + np.eye(dims)[axis] / 2 for axis in range(dims)]
    if dims == 3:
        border = _surface(padded, np.eye(3))
        row["surface_mm2"] = _surface(padded, steps)
        row["diameter_mm"] = float(pdist(_hull(np.concatenate(halves)) @ steps.T).max())
        axis = int(np.argmax(np.abs(steps[2]) / lengths))  # the axis of the image that is closest to that of the body
        points = np.concatenate([part for other, part in enumerate(halves) if other != axis])
        first = start[axis] - 1
        slices = {int(first + index): points[points[:, axis] == index] for index in np.unique(points[:, axis])}
    else:
        edges = np.concatenate([np.diff(ring, axis=0) for ring in find_contours(padded, 0.5)])
        border = float(np.linalg.norm(edges, axis=1).sum())
        row[f"perimeter_{unit}"] = float(np.linalg.norm(edges @ steps.T, axis=1).sum())
        axis, slices = 2, {0: np.concatenate(halves)}
    row[size.replace("_", "_uncertainty_")] = border * voxel / 2  # what a border displaced by half a voxel changes
    long, short, index = max((*_diameters(points @ steps.T), index) for index, points in slices.items())
    spread = max(length for other, length in enumerate(lengths.tolist()) if other != axis)
    row |= {f"long_axis_{unit}": long, f"long_axis_uncertainty_{unit}": spread, f"short_axis_{unit}": short}
    return row | {"axial_slice": index}


@cache
def _triangles() -> tuple[Points, npt.NDArray[np.intp]]:
    """Return the triangles `(N, 3, 3)` that marching cubes lays into a cube, and the number of the cube's case.

    The bits of a case are the values at `CORNERS`. As in PyRadiomics, a cube has the triangles of its complement.
    """
    found, cases = [], []
    for case in range(1, 1 << len(CORNERS) - 1):
        cube = np.zeros((2, 2, 2), np.float32)
        cube[tuple(np.transpose(CORNERS))] = [case >> bit & 1 for bit in range(len(CORNERS))]
        vertices, faces, *_ = marching_cubes(cube, 0.5, method="lorensen")
        found.append(vertices[faces])
        cases += [case] * len(faces)
    return np.concatenate(found).astype(np.float64), np.array(cases)


def _surface(padded: Array, steps: Points) -> float:
    """Return the area of the mesh of a padded mask, by counting how often each case of a cube occurs."""
    ends = np.array(padded.shape) - 1
    cubes = np.zeros(ends, np.uint8)
    for bit, corner in enumerate(CORNERS):
        cubes |= padded[tuple(slice(low, low + n) for low, n in zip(corner, ends, strict=True))].astype(np.uint8) << bit
    counts = np.bincount(np.minimum(cubes, ~cubes).ravel(), minlength=128)
    triangles, cases = _triangles()
    first, second, third = np.moveaxis(triangles @ steps.T, 1, 0)
    return float(counts[cases] @ np.linalg.norm(np.cross(second - first, third - first), axis=1) / 2)


def _hull(points: Points) -> Points:
    return np.asarray(points[ConvexHull(points).vertices])


def _diameters(points: Points) -> tuple[float, float]:
    """Return the longest distance of points in a plane, and the longest one perpendicular to it in their hull."""
    *_, plane = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    hull = _hull(points @ plane[:2].T)  # in order around it
    distances = squareform(pdist(hull))
    first, last = np.unravel_index(np.argmax(distances), distances.shape)
    long = hull[last] - hull[first]
    hull = np.roll(hull - hull[first], -first, axis=0) @ np.array([long, (-long[1], long[0])]).T / distances.max()
    one, other = hull[: last - first + 1], np.vstack([hull[last - first :], hull[:1]])[::-1]  # its two sides
    chords = np.interp(hull[:, 0], *one.T) - np.interp(hull[:, 0], *other.T)
    return float(distances.max()), float(np.abs(chords).max())
