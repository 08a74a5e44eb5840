"""Touching objects from a probability map, separated even where the border between them has gaps."""

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import local_maxima

from medunet.errors import ConfigError, DataError

LEVELS = 32  # grey values that the map is rounded to; maxima that differ by less are one, as noise makes many
SMOOTHING = 1.0  # standard deviation in voxels; less makes basins of noise, more fades thin membranes


def separate_cells(
    interior: npt.ArrayLike, *, mask: npt.ArrayLike | None = None, boundary: float = 0.5, smoothing: float = SMOOTHING
) -> npt.NDArray[np.int32]:
    """Number the cells of a probability map.

    A threshold joins two cells through the smallest gap in the membrane between them. This function cuts the map into
    basins, one per maximum (watershed), and joins those first whose common border is lowest, until no border is below
    `boundary`. The height of a border is the share by which the mean interior along it is below the lower of the two
    maxima: the whole border counts, not its weakest point, and faint cells count like bright ones.

    Args:
        interior: probability of a cell's interior in [0, 1], `(*spatial)`, 2D or 3D. Other maps work that are high in
            the middle of an object and low at its border, such as the distance to the border.
        mask: where cells are, `(*spatial)`; None if they fill the image. Each component has at least one cell.
        boundary: height at which a border separates two cells; if the interior is 1 inside both, the mean membrane
            probability (1 - interior). A network trained with a greater weight on membranes needs a greater value.
        smoothing: standard deviation in voxels by which the map is smoothed before it is cut.

    Returns:
        Cell numbers from 1, `(*spatial)`; 0 is outside the mask.

    Raises:
        ConfigError: `boundary` is not in [0, 1].
        DataError: `interior` is not 2D or 3D, or not in [0, 1].

    Sources: average linkage on the region adjacency graph of a watershed; Bailoni et al., GASP, CVPR 2022
        (arXiv 1906.11713), compares the criteria.

    Examples:
        >>> interior = np.ones((9, 21))
        >>> interior[:, 10] = 0.1  # a membrane ...
        >>> interior[4, 10] = 0.9  # ... with a gap
        >>> len(np.unique(separate_cells(interior)))
        2
        >>> len(np.unique(separate_cells(interior, boundary=0.95)))
        1
    """
    if not 0 <= boundary <= 1:
        raise ConfigError("boundary must be in [0, 1]", received=boundary)
    probability = np.asarray(interior, dtype=np.float32)
    low, high = probability.min(initial=0), probability.max(initial=1)
    if probability.ndim not in (2, 3) or not (low >= 0 and high <= 1):
        received = f"shape {probability.shape}, values {low} to {high}"
        raise DataError("cells need a probability map, 2D or 3D, with values in [0, 1]", received=received)
    inside = np.ones(probability.shape, bool) if mask is None else np.asarray(mask, dtype=bool)
    smooth = ndimage.gaussian_filter(probability, smoothing) if smoothing else probability
    # a margin of zeros, so that a neighbour's flat index is always valid and every component has a maximum
    levels = np.pad(np.where(inside, 1 + np.rint(smooth * (LEVELS - 2)), 0).astype(np.uint8), 1)
    basins, count = ndimage.label(local_maxima(levels, connectivity=1))
    _flood(basins, levels)
    basins = basins[(slice(1, -1),) * basins.ndim]
    pairs, sums, sizes = _borders(basins, probability)
    tops = np.zeros(count + 1, dtype=np.float32)
    np.maximum.at(tops, basins, smooth)
    joined = _join(tops, pairs, sums, sizes, boundary)
    return np.asarray(joined[basins], dtype=np.int32)


def _flood(basins: npt.NDArray[np.int32], levels: npt.NDArray[np.uint8]) -> None:
    """Grow basins in place over all levels above 0, the highest voxels first: a watershed, many voxels at a time."""
    flat, level = basins.reshape(-1), levels.reshape(-1)
    free = (level > 0) & (flat == 0)
    steps = [sign * stride // basins.itemsize for stride in basins.strides for sign in (1, -1)]
    front, waiting = np.flatnonzero(flat), np.empty(0, dtype=np.intp)
    for height in range(LEVELS, 0, -1):
        ready = level[waiting] >= height
        front, waiting = np.concatenate([front, waiting[ready]]), waiting[~ready]
        while front.size:
            reached = []
            for step in steps:
                source = front[free[front + step]]
                free[source + step] = False
                flat[source + step] = flat[source]
                reached.append(source + step)
            new = np.concatenate(reached)
            ready = level[new] >= height
            front, waiting = new[ready], np.concatenate([waiting, new[~ready]])


def _borders(
    basins: npt.NDArray[np.int32], interior: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return which basins touch, the sum of the interior over their border (of two voxels, the smaller), its size."""
    keys, weights = [], []
    base = int(basins.max(initial=0)) + 1
    for axis in range(basins.ndim):
        here, there = (np.moveaxis(basins, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        touching = (here != there) & (here > 0) & (there > 0)
        one, other = here[touching].astype(np.int64), there[touching]
        keys.append(np.minimum(one, other) * base + np.maximum(one, other))
        moved = np.moveaxis(interior, axis, 0)
        weights.append(np.minimum(moved[1:][touching], moved[:-1][touching]))
    borders, of_border, sizes = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    sums = np.bincount(of_border, np.concatenate(weights), minlength=len(borders))
    return np.stack(np.divmod(borders, base), axis=1), sums, sizes


def _join(tops: npt.NDArray[np.float32], pairs: Any, sums: Any, sizes: Any, boundary: float) -> npt.NDArray[np.int32]:
    """Join basins over the lowest border until none is below `boundary`; return the cell of each basin."""
    top = np.maximum(tops, np.finfo(np.float32).tiny).tolist()
    borders: list[dict[int, tuple[float, int]]] = [{} for _ in top]  # sum and size by neighbour
    for (one, other), total, size in zip(pairs.tolist(), sums.tolist(), sizes.tolist(), strict=True):
        borders[one][other] = borders[other][one] = (total, size)

    def height(one: int, other: int) -> float:
        total, size = borders[one][other]
        return float(1 - total / size / min(top[one], top[other]))

    queue = [(low, one, other) for one, other in pairs.tolist() if (low := height(one, other)) < boundary]
    heapq.heapify(queue)
    cell = np.arange(len(top))
    while queue:
        low, one, other = heapq.heappop(queue)
        if other not in borders[one] or height(one, other) != low:  # one of them was joined to another, or has grown
            continue
        if len(borders[one]) < len(borders[other]):
            one, other = other, one
        cell[other] = one
        changed = set(borders[other]) if top[one] >= top[other] else {*borders[other], *borders[one]}
        top[one] = max(top[one], top[other])
        for neighbour, (total, size) in borders[other].items():
            del borders[neighbour][other]
            if neighbour != one:
                more, longer = borders[one].get(neighbour, (0.0, 0))
                borders[one][neighbour] = borders[neighbour][one] = (total + more, size + longer)
        borders[other] = {}
        for neighbour in changed - {one, other}:
            if (low := height(one, neighbour)) < boundary:
                heapq.heappush(queue, (low, one, neighbour))
    while not np.array_equal(cell, cell[cell]):
        cell = cell[cell]
    return np.unique(cell, return_inverse=True)[1].astype(np.int32)
