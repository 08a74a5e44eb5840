"""Cells from a probability map of their interior, separated even where a membrane has gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.graph import RAG, merge_hierarchical
from skimage.morphology import h_minima, local_minima
from skimage.segmentation import watershed

from medunet.errors import ConfigError, DataError

SMOOTHING = 1.0  # standard deviation in voxels; less makes basins of noise, more fades thin membranes
DEPTH = 0.05  # basins shallower than this are merged from the start; on ISBI 2012, 0.02 gave the same cells


def separate_cells(
    interior: npt.ArrayLike, *, boundary: float = 0.5, depth: float = DEPTH, smoothing: float = SMOOTHING
) -> npt.NDArray[np.int32]:
    """Number the cells of a probability map.

    A threshold joins two cells through the smallest gap in the membrane between them. This function cuts the map into
    basins (watershed) and joins basins in the order of the mean membrane probability along their common border, until
    no border is below `boundary`: the whole border counts, not its weakest point.

    Args:
        interior: probability of a cell's interior in [0, 1], `(*spatial)`, 2D or 3D.
        boundary: mean membrane probability (1 - interior) at which a border separates two cells. A network trained
            with a greater weight on membranes needs a greater value.
        depth: smallest difference in probability between a basin and its pass to the next.
        smoothing: standard deviation in voxels by which the map is smoothed before it is cut.

    Returns:
        Cell numbers from 1, `(*spatial)`; cells touch, and no voxel is 0.

    Raises:
        ConfigError: `boundary` or `depth` is not in [0, 1].
        DataError: `interior` is not 2D or 3D, or not in [0, 1].

    Sources: average linkage on the region adjacency graph of a watershed, as in `skimage.graph`; Bailoni et al.,
        GASP, CVPR 2022 (arXiv 1906.11713), compares the criteria.

    Examples:
        >>> interior = np.ones((9, 21))
        >>> interior[:, 10] = 0.1  # a membrane ...
        >>> interior[4, 10] = 0.9  # ... with a gap
        >>> len(np.unique(separate_cells(interior)))
        2
        >>> len(np.unique(separate_cells(interior, boundary=0.95)))
        1
    """
    for name, value in (("boundary", boundary), ("depth", depth)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} must be in [0, 1]", received=value)
    probability = np.asarray(interior, dtype=np.float32)
    low, high = probability.min(initial=0), probability.max(initial=1)
    if probability.ndim not in (2, 3) or not (low >= 0 and high <= 1):
        received = f"shape {probability.shape}, values {low} to {high}"
        raise DataError("cells need a probability map, 2D or 3D, with values in [0, 1]", received=received)
    membrane = 1 - probability
    basins = _basins(ndimage.gaussian_filter(membrane, smoothing) if smoothing else membrane, depth)
    options: dict[str, Any] = {"rag_copy": False, "in_place_merge": True, "merge_func": lambda *_: None}
    graph = _borders(basins, membrane)
    return np.asarray(
        merge_hierarchical(basins, graph, boundary, weight_func=_mean_border, **options) + 1, dtype=np.int32
    )


def _basins(landscape: npt.NDArray[np.float32], depth: float) -> npt.NDArray[np.int32]:
    """Number the basins from 1; a flat map is one basin."""
    bottoms = h_minima(landscape, depth) if depth else local_minima(landscape)
    markers, number = ndimage.label(bottoms, structure=np.ones((3,) * landscape.ndim))
    return np.asarray(watershed(landscape, markers) if number > 1 else np.ones(landscape.shape), dtype=np.int32)


def _borders(basins: npt.NDArray[np.int32], membrane: npt.NDArray[np.float32]) -> RAG:
    """Return which basins touch, and the mean membrane probability of their border (of two voxels, the greater)."""
    pairs, weights = [], []
    for axis in range(basins.ndim):
        here, there = (np.moveaxis(basins, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        touching = here != there
        pairs.append(np.sort(np.stack([here[touching], there[touching]], axis=1), axis=1))
        moved = np.moveaxis(membrane, axis, 0)
        weights.append(np.maximum(moved[1:], moved[:-1])[touching])
    borders, of_border = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    counts = np.bincount(of_border.ravel(), minlength=len(borders))
    sums = np.bincount(of_border.ravel(), np.concatenate(weights), minlength=len(borders))
    graph = RAG()
    graph.add_nodes_from((int(basin), {"labels": [int(basin)]}) for basin in np.unique(basins))
    for (one, other), total, count in zip(borders.tolist(), sums.tolist(), counts.tolist(), strict=True):
        graph.add_edge(one, other, weight=total / count, count=count)
    return graph


def _mean_border(graph: Any, source: int, target: int, neighbour: int) -> dict[str, float]:
    """Return the border to `neighbour` after `source` and `target` are merged: the mean over the voxels of both."""
    absent = {"weight": 0.0, "count": 0}
    one, other = (graph[basin].get(neighbour, absent) for basin in (source, target))
    count = one["count"] + other["count"]
    return {"count": count, "weight": (one["count"] * one["weight"] + other["count"] * other["weight"]) / count}
