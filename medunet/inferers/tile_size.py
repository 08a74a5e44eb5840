"""Choosing tiles: the whole image where it fits, else the tiling that evaluates the fewest voxels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from medunet.errors import ConfigError

from .tiling import TileableShapes, TilePlan, plan_tiles, smallest_tile

MAX_LIMITS = 64
"""Tile sizes that are tried along one axis; of more, some are left out."""


def choose_tiles(
    image_size: Sequence[int],
    max_voxels: float,
    *,
    shapes: TileableShapes,
    halo: Sequence[int] | None = None,
    extend: int = 0,
) -> TilePlan:
    """Plan the tiles of an image so that no window has more than `max_voxels`.

    Of all numbers of pieces along each axis, the combination is taken whose windows have the fewest voxels together;
    among equals the one with the fewest tiles.

    Args:
        image_size: spatial size of the image.
        max_voxels: largest window, in voxels of the network's input.
        shapes: of the network.
        halo: as in `plan_tiles`.
        extend: as in `plan_tiles`.

    Raises:
        ConfigError: the smallest window that the network can work with has more voxels.

    Example:
        >>> from medunet.inferers import SameSizeShapes
        >>> shapes = SameSizeShapes(total_stride=(4, 4), halo=(4, 4))
        >>> [tile.window_size for tile in choose_tiles((40, 20), 500, shapes=shapes).tiles]
        [(24, 20), (24, 20)]
    """
    whole = plan_tiles(image_size, None, shapes=shapes, halo=halo, extend=extend)
    if math.prod(whole.tiles[0].window_size) <= max_voxels:
        return whole
    axes = [_cuts(axis, tuple(image_size), shapes=shapes, halo=halo, extend=extend) for axis in range(len(image_size))]
    fitting = [choice for choice in itertools.product(*axes) if math.prod(cut[0] for cut in choice) <= max_voxels]
    if not fitting:
        least = [min(cut[0] for cut in cuts) for cuts in axes]
        raise ConfigError(
            "memory is too small for the smallest tile of this network",
            received=f"{max_voxels:.3g} voxels",
            expected=f"{math.prod(least)} voxels ({' x '.join(map(str, least))})",
            remedy="free memory, give a larger `memory`, or a smaller halo",
        )
    best = min(fitting, key=lambda choice: (math.prod(c[1] for c in choice), math.prod(c[2] for c in choice)))
    tile = tuple(cut[0] for cut in best)
    return plan_tiles(image_size, tile, shapes=shapes, halo=halo, extend=extend)


def _cuts(
    axis: int,
    image_size: tuple[int, ...],
    *,
    shapes: TileableShapes,
    halo: Sequence[int] | None,
    extend: int,
) -> list[tuple[int, int, int]]:
    """Ways to cut one axis: largest window, all windows together, number of pieces."""

    def cut(limit: int | None) -> tuple[int, int, int]:
        tile = [limit if k == axis else None for k in range(len(image_size))]
        plan = plan_tiles(image_size, tile, shapes=shapes, halo=halo, extend=extend)
        lengths = [tile.window_size[axis] for tile in plan.tiles]
        return max(lengths), sum(lengths), len(lengths)

    stride, whole = shapes.total_stride[axis], cut(None)
    least = smallest_tile(shapes, halo=halo, extend=extend)[axis]
    limits = range(least, whole[0], stride)
    limits = limits[:: math.ceil(len(limits) / MAX_LIMITS) or 1]
    return sorted({whole, *map(cut, limits)})
