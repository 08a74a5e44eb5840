r"""Masks in the plane of a slice to closed polygons and back, exact to the voxel in both directions.

A polygon runs halfway between the centres of voxels inside and outside; a voxel is inside if its centre is::

    . . . . .          centres; o is inside
    . . _ . .
    . / o \ .          the polygon of a single voxel is a diamond half a voxel wide
    . \ o / .
    . . ' . .
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import find_contours

Polygon = npt.NDArray[np.float64]
"""Corners ``(N, 2)`` in voxel indices; the first is not repeated at the end."""

Mask = npt.NDArray[np.bool_]


def trace_contours(mask: Mask) -> Iterator[Polygon]:
    """Yield one polygon per part of a mask ``(A, B)``; holes are connected by keyholes.

    A keyhole is a channel of zero width from the rim to the hole and back, as DICOM requires for CLOSED_PLANAR (PS3.3
    C.8.8.6.3). Voxels that only touch at a corner are different parts.
    """
    parts, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        rings = [straightened(ring[:-1]) for ring in trace_rings(parts[box] == number, connected="low")]
        yield _joined_by_keyholes(rings[0], rings[1:]) + [side.start for side in box]


def trace_rings(part: Mask, *, connected: Literal["low", "high"]) -> list[Polygon]:
    """Return the outer ring of a connected mask ``(A, B)`` and those of its holes; the last corner repeats the first.

    Where two voxels of the part and two others meet at a corner, `connected` tells which two are on one side of a ring.
    """
    padded = np.pad(part.astype(np.float32), 1)  # the rim of the image is a rim, too
    rings = [ring - 1 for ring in find_contours(padded, 0.5, fully_connected=connected)]
    return sorted(rings, key=lambda ring: -np.ptp(ring, axis=0).prod())  # the outer one contains the others


def fill_contours(polygons: Sequence[Polygon], shape: tuple[int, int]) -> Mask:
    """Return the voxels ``(A, B)`` whose centre is inside an odd number of polygons; parts outside are cut off.

    A polygon within a polygon is therefore a hole, and the two sides of a keyhole cancel. A centre on an edge belongs
    to one side only, so that neighbours share no voxel and leave none out.
    """
    if not polygons:
        return np.zeros(shape, dtype=bool)
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    # All edges get the same direction, so that the two sides of a keyhole round to the same voxels.
    falls = (starts[:, 0] > ends[:, 0]) | ((starts[:, 0] == ends[:, 0]) & (starts[:, 1] > ends[:, 1]))
    low, high = np.where(falls[:, None], ends, starts), np.where(falls[:, None], starts, ends)
    first = np.clip(np.ceil(low[:, 0]), 0, shape[0]).astype(np.int64)
    last = np.clip(np.ceil(high[:, 0]), 0, shape[0]).astype(np.int64)
    crossed = last - first
    edge = np.repeat(np.arange(len(crossed)), crossed)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    share = (row - low[edge, 0]) / (high[edge, 0] - low[edge, 0])
    column = low[edge, 1] + share * (high[edge, 1] - low[edge, 1])
    begin = np.clip(np.ceil(column), 0, shape[1]).astype(np.int64)
    width = shape[1] + 1  # a crossing beyond the last column has no effect
    turns = np.bincount(row * width + begin, minlength=shape[0] * width).reshape(shape[0], width)
    return np.asarray(np.cumsum(turns, axis=1)[:, :-1] % 2 == 1)


def straightened(ring: Polygon) -> Polygon:
    """Drop collinear vertices."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return np.asarray(ring[turn != 0])


def _joined_by_keyholes(rim: Polygon, holes: list[Polygon]) -> Polygon:
    """Join all rings into one. The hole nearest to the joined part comes next, so that channels do not cross."""
    holes = list(holes)
    while holes:
        tree = KDTree(rim)
        near = [tree.query(hole) for hole in holes]
        nearest = int(np.argmin([distances.min() for distances, _ in near]))
        hole, (distances, indices) = holes.pop(nearest), near[nearest]
        leave = int(np.argmin(distances))
        enter = int(indices[leave])
        around = np.concatenate([np.roll(hole, -leave, axis=0), hole[leave : leave + 1]])
        rim = np.concatenate([rim[: enter + 1], around, rim[enter:]])
    return rim
