"""Tiles of the overlap-tile strategy (Ronneberger et al. 2015, figure 2): integers only, no tensor.

A voxel is kept only from a window that contains everything the voxel depends on, or that ends where the image ends.
Windows start at multiples of the network's total stride, because pooling pairs the voxels (0, 1), (2, 3), ...
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from medunet.errors import ConfigError
from medunet.networks import UNetShapes
from medunet.networks.shapes import round_up

MAX_LIMITS = 64  # tile sizes that are tried along one axis; if there are more, some are left out
# Parts of the halo, the whole one first. The farther away a voxel, the less it weighs in the output (Luo et al. 2016,
# "effective receptive field").
HALO_PARTS = (1.0, 0.75, 0.5, 0.35, 0.25)
MOST_TIMES = 4.0  # voxels of all windows per voxel of the image, beyond which a part of the halo is used


@dataclass(frozen=True)
class SameSizeShapes:
    """Shapes of a network whose output is as large as its input, a multiple of its total stride.

    Args:
        total_stride: product of all strides per axis, in voxels.
        halo: voxels beyond the kept region on each side, per axis.

    Examples:
        >>> SameSizeShapes(total_stride=(8, 4), halo=(16, 16)).next_valid_input((5, 33))
        (8, 36)
    """

    total_stride: tuple[int, ...]
    halo: tuple[int, ...]

    @property
    def margin(self) -> tuple[int, ...]:
        """Zeros: the output is as large as the input."""
        return (0,) * len(self.total_stride)

    def next_valid_input(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return `size` rounded up to multiples of the total stride, as MONAI's U-Nets require."""
        return tuple(map(round_up, size, self.total_stride))

    def input_for_output(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the same as `next_valid_input`."""
        return self.next_valid_input(size)


Shapes = UNetShapes | SameSizeShapes


@dataclass(frozen=True)
class Tile:
    """One pass of the network."""

    # the network's input, in the extended image: the image with `TilePlan.margin` voxels before it and as many as
    # needed after it, so that no slice is negative
    window: tuple[slice, ...]
    keep: tuple[slice, ...]  # region of the image that this tile computes

    @property
    def trim(self) -> tuple[slice, ...]:
        """The kept region in the coordinates of the network's output for the window."""
        pairs = zip(self.window, self.keep, strict=True)
        return tuple(slice(keep.start - window.start, keep.stop - window.start) for window, keep in pairs)

    @property
    def window_size(self) -> tuple[int, ...]:
        """Spatial size of the network's input."""
        return tuple(s.stop - s.start for s in self.window)


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one image, last axis fastest; the extended image starts `margin` voxels before the image."""

    image_size: tuple[int, ...]
    margin: tuple[int, ...]
    tiles: tuple[Tile, ...]

    def by_window_size(self) -> dict[tuple[int, ...], list[Tile]]:
        """Return the tiles that may share a batch, in the order of their first occurrence."""
        groups: dict[tuple[int, ...], list[Tile]] = {}
        for tile in self.tiles:
            groups.setdefault(tile.window_size, []).append(tile)
        return groups


def smallest_tile(shapes: Shapes, *, halo: Sequence[int] | None = None, extend: int = 0) -> tuple[int, ...]:
    """Return the smallest tile per axis for images of any size.

    Args:
        shapes: shapes of the network.
        halo: voxels beyond the kept region on each side, per axis; None uses that of `shapes`.
        extend: voxels of the next regions that each kept region includes, see `plan_tiles`.

    Examples:
        >>> smallest_tile(SameSizeShapes(total_stride=(16, 16), halo=(48, 8)))
        (112, 32)
    """
    if any(shapes.margin):
        return shapes.input_for_output([stride + extend for stride in shapes.total_stride])
    # without a halo the last window may have to start a stride earlier, see `_padded_axis`
    return tuple(
        max(round_up(2 * (h + extend), s) + s, 2 * s if s > 1 else 1)
        for h, s in zip(shapes.halo if halo is None else halo, shapes.total_stride, strict=True)
    )


def plan_tiles(
    image_size: Sequence[int],
    tile_size: Sequence[int | None] | None,
    *,
    shapes: Shapes,
    halo: Sequence[int] | None = None,
    extend: int = 0,
) -> TilePlan:
    """Return windows for the network whose kept regions partition the image.

    `tile_size` is the largest network input; None, or None for an axis, takes all of it. A valid network rounds it up
    to the next size that it accepts. `halo` is the context of a padded network beyond the kept region on each side, by
    default that of `shapes`, with which the result equals that of the whole image. Each kept region includes `extend`
    voxels of the next ones at its far side, so that a caller can interpolate within one tile.

    Raises:
        ConfigError: a tile that is too small for the network, or different numbers of axes.
    """
    image, axes = tuple(image_size), len(shapes.total_stride)
    tile = (None,) * axes if tile_size is None else tuple(tile_size)
    halo = tuple(shapes.halo if halo is None else halo)
    if not len(image) == len(tile) == len(halo) == axes or min(image) < 1:
        received = f"image {image}, tile {tile}, halo {halo}"
        raise ConfigError(f"sizes must have {axes} axes, and the image at least one voxel", received=received)
    valid = any(shapes.margin)
    smallest = smallest_tile(shapes, halo=halo, extend=extend)
    # the window of the whole image; a padded network that rejects its size (below the total stride) gets more
    whole = shapes.input_for_output(image) if valid else shapes.next_valid_input(image)
    if any(t is not None and t < min(least, most) for t, least, most in zip(tile, smallest, whole, strict=True)):
        raise ConfigError(
            "tile is too small for the context that the network needs",
            received=tile,
            remedy=f"set tile_size to {smallest} or more, or to null for the whole image in one pass",
        )
    limit = tuple(w if t is None else min(t, w) for t, w in zip(tile, whole, strict=True))
    if valid:
        spans = _valid_axes(image, limit, shapes, extend)
    else:
        sizes = zip(image, whole, limit, shapes.total_stride, halo, strict=True)
        spans = [_padded_axis(n, total, window, stride, h + extend) for n, total, window, stride, h in sizes]
    spans = [
        [(window, slice(keep.start, min(keep.stop + extend, n))) for window, keep in axis]
        for axis, n in zip(spans, image, strict=True)
    ]
    tiles = tuple(Tile(*zip(*product, strict=True)) for product in itertools.product(*spans))
    return TilePlan(image_size=image, margin=tuple(shapes.margin), tiles=tiles)


_Axis = list[tuple[slice, slice]]  # window and kept region of each piece along one axis


def _padded_axis(size: int, total: int, window: int, stride: int, halo: int) -> _Axis:
    """Cut `total` voxels, the first `size` of which belong to the image, into windows that overlap."""
    if total <= window:
        return [(slice(0, total), slice(0, size))]
    window = window // stride * stride
    # window 16, halo 4, stride 4; = is kept, - is context. At both ends of the image the network's own padding acts as
    # it does on the whole image.
    #   [============----]
    #           [----========----]
    #                   [----==========]  the last window is as short as the image allows
    step = (window - 2 * halo) // stride * stride
    lead = (window - step) // 2  # at least the halo; the remainder of rounding the step goes to both sides
    final = round_up(total - window, step)
    starts = range(0, final, step)
    spans = [(slice(n, n + window), slice(n + lead if n else 0, n + step + lead)) for n in starts]
    # a last window shorter than the stride would have no voxel on the coarsest level, so it starts earlier
    start = min(final, (total - stride) // stride * stride)
    return [*spans, (slice(start, total), slice(final + lead, size))]


def _valid_axes(image: tuple[int, ...], limit: tuple[int, ...], shapes: Shapes, extend: int) -> list[_Axis]:
    """Cut each axis for a network that loses `margin` voxels on each side."""
    window = shapes.next_valid_input(limit)
    output = [w - 2 * margin for w, margin in zip(window, shapes.margin, strict=True)]
    # the 2015 network returns 388 for 572, and the paper's tiles abut at 388 = 24 * 16 + 4; but a window that starts 4
    # voxels off the multiples of 16 is pooled in another phase, which makes a seam, so the step is 384
    # (at least one stride: the output of an image of one window may be smaller)
    steps = [max(s, (n - extend) // s * s) for n, s in zip(output, shapes.total_stride, strict=True)]
    finals = [round_up(max(0, size - n), step) for size, n, step in zip(image, output, steps, strict=True)]
    # the last window of an axis is no larger than the rest of the image
    rest = shapes.input_for_output([size - final for size, final in zip(image, finals, strict=True)])
    axes = []
    for size, full, step, final, last in zip(image, window, steps, finals, rest, strict=True):
        spans = [(slice(n, n + full), slice(n, n + step)) for n in range(0, final, step)]
        axes.append([*spans, (slice(final, final + last), slice(final, size))])
    return axes


def choose_tiles(
    image_size: Sequence[int], max_voxels: float, *, shapes: Shapes, halo: Sequence[int] | None = None, extend: int = 0
) -> TilePlan:
    """Plan the tiles of an image so that no window has more than `max_voxels`; other arguments as for `plan_tiles`.

    Each axis is cut so that all windows together have the fewest voxels, among at most `MAX_LIMITS` sizes of tiles
    along each axis; of equal plans, the one with fewest tiles wins.

    Raises:
        ConfigError: the smallest window that the network can work with has more voxels.
    """

    def plan(tile: Sequence[int | None] | None) -> TilePlan:
        return plan_tiles(image_size, tile, shapes=shapes, halo=halo, extend=extend)

    def cut(axis: int, limit: int | None) -> tuple[int, int, int]:
        """Return the largest window, the sum of all windows, and the number of pieces along one axis."""
        tiles = plan([limit if k == axis else None for k in range(len(image_size))]).tiles
        lengths = [tile.window_size[axis] for tile in tiles]
        return max(lengths), sum(lengths), len(lengths)

    whole = plan(None)
    if math.prod(whole.tiles[0].window_size) <= max_voxels:
        return whole
    axes = []
    for axis, least in enumerate(smallest_tile(shapes, halo=halo, extend=extend)):
        limits = range(least, whole.tiles[0].window_size[axis], shapes.total_stride[axis])
        limits = limits[:: math.ceil(len(limits) / MAX_LIMITS) or 1]
        axes.append(sorted({cut(axis, limit) for limit in (None, *limits)}))
    fitting = [choice for choice in itertools.product(*axes) if math.prod(cut[0] for cut in choice) <= max_voxels]
    if not fitting:
        lowest = [cuts[0][0] for cuts in axes]
        raise ConfigError(
            "memory is too small for the smallest tile of this network",
            received=f"{max_voxels:.3g} voxels",
            expected=f"{math.prod(lowest)} voxels ({' x '.join(map(str, lowest))})",
            remedy="free memory, give a larger `memory`, or a smaller halo",
        )
    best = min(fitting, key=lambda choice: (math.prod(c[1] for c in choice), math.prod(c[2] for c in choice)))
    return plan([cut[0] for cut in best])


def choose_halo(
    image_size: Sequence[int], max_voxels: float, *, shapes: Shapes, extend: int = 0
) -> tuple[TilePlan, tuple[int, ...]]:
    """Plan the tiles of an image with the largest part of a padded network's halo that is affordable.

    A part is affordable if its windows have at most `max_voxels`, and all together at most `MOST_TIMES` the voxels of
    the image. If none is, the part whose windows have the fewest voxels is used.

    Args:
        image_size: voxels per spatial axis.
        max_voxels: most voxels of a window.
        shapes: shapes of the network.
        extend: as for `plan_tiles`.

    Returns:
        The plan and its halo in voxels, per axis.

    Raises:
        ConfigError: no part fits into `max_voxels`.
    """
    found: list[tuple[float, TilePlan, tuple[int, ...]]] = []
    most = MOST_TIMES * math.prod(shapes.next_valid_input(image_size))
    for part in HALO_PARTS:
        halo = tuple(min(n, round_up(int(part * n), s)) for n, s in zip(shapes.halo, shapes.total_stride, strict=True))
        try:
            plan = choose_tiles(image_size, max_voxels, shapes=shapes, halo=halo, extend=extend)
        except ConfigError:
            if part == HALO_PARTS[-1] and not found:
                raise
            continue
        found.append((sum(math.prod(tile.window_size) for tile in plan.tiles), plan, halo))
        if found[-1][0] <= most:
            return plan, halo
    return min(found, key=lambda one: one[0])[1:]
