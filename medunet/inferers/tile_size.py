"""Choosing tiles: the whole image if it fits, else the tiling that evaluates the fewest voxels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from medunet.errors import ConfigError

from .tiling import TileableShapes, TilePlan, plan_tiles, smallest_tile

LESS_HALO = (0.75, 0.5, 0.35, 0.25)
"""Parts of the exact halo that are tried, largest first, if memory has no room for one tile with all of it."""

MAX_LIMITS = 64
"""Tile sizes that are tried along one axis; if there are more, some are left out."""


def choose_tiles(
    image_size: Sequence[int],
    max_voxels: float,
    *,
    shapes: TileableShapes,
    halo: Sequence[int] | None = None,
    extend: int = 0,
) -> TilePlan:
    """Plan the tiles of an image so that no window has more than `max_voxels`.

    Of all numbers of pieces along each axis, take the combination whose windows have the fewest voxels together; of
    equals, the one with the fewest tiles.

    Args:
        image_size: spatial size of the image.
        max_voxels: largest window, in voxels of the network's input.
        shapes: shapes of the network.
        halo: voxels beyond the kept region on each side, per axis; None takes that of `shapes`.
        extend: voxels of the next regions that each kept region includes, see `plan_tiles`.

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


def with_less_halo(
    image_size: Sequence[int], max_voxels: float, *, shapes: TileableShapes, extend: int = 0
) -> tuple[TilePlan, tuple[int, ...]] | None:
    """Plan tiles with a part of the network's halo; return them and that halo.

    The largest part for which there are tiles is taken: the farther away a voxel, the less it weighs in the output (Luo
    et al. 2016, "effective receptive field"). None if there are no tiles at all, as for valid networks, whose margin is
    fixed. The arguments are those of `choose_tiles`.

    Example:
        >>> from medunet.inferers import SameSizeShapes
        >>> shapes = SameSizeShapes(total_stride=(4, 4), halo=(16, 16))
        >>> plan, halo = with_less_halo((200, 200), 900, shapes=shapes)
        >>> halo, plan.tiles[0].window_size
        ((12, 12), (28, 32))
    """
    if any(shapes.margin):
        return None
    for part in LESS_HALO:
        halo = tuple(math.ceil(part * n / s) * s for n, s in zip(shapes.halo, shapes.total_stride, strict=True))
        try:
            return choose_tiles(image_size, max_voxels, shapes=shapes, halo=halo, extend=extend), halo
        except ConfigError:
            continue
    return None


def _cuts(
    axis: int, image_size: tuple[int, ...], *, shapes: TileableShapes, halo: Sequence[int] | None, extend: int
) -> list[tuple[int, int, int]]:
    """Return ways to cut one axis: largest window, sum of all windows, number of pieces."""

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
