"""Tiles of the overlap-tile strategy: integers only, no tensor.

Ronneberger et al. 2015 (figure 2) cut an image into tiles so that the stitched output has no seam. That needs:

1. **Context.** A voxel is kept only from a window that contains everything the voxel depends on, or that ends where
   the image ends, as a pass over the whole image does.
2. **Phase.** Pooling by 2 pairs the voxels (0, 1), (2, 3), ... of its input. A window that started at voxel 1 would
   pair (1, 2), (3, 4), ...: another function. So windows start at multiples of the network's total stride.

Tiles are planned axis by axis; a tile of the image is the product of one span of each axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from medunet.errors import ConfigError


class TileableShapes(Protocol):
    """Sizes of a network, for planning; `medunet.networks.shapes.UNetShapes` has them."""

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Product of all strides per axis, in voxels: the network's period under translation."""

    @property
    def halo(self) -> tuple[int, ...]:
        """Voxels beyond the kept region, on each side, that make a window of a padded network exact."""

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels by which the output is smaller on each side; zeros for a padded network."""

    def next_valid_input(self, size: Sequence[int], /) -> tuple[int, ...]:
        """Smallest size the network accepts that is not smaller than `size`."""

    def input_for_output(self, size: Sequence[int], /) -> tuple[int, ...]:
        """Smallest size the network accepts whose output is not smaller than `size`."""


@dataclass(frozen=True)
class SameSizeShapes:
    """Shapes of a network whose output is as large as its input, a multiple of its total stride.

    Args:
        total_stride: product of all strides per axis, in voxels.
        halo: voxels beyond the kept region on each side, per axis.

    Example:
        >>> SameSizeShapes(total_stride=(8, 4), halo=(16, 16)).next_valid_input((5, 33))
        (8, 36)
    """

    total_stride: tuple[int, ...]
    halo: tuple[int, ...]

    @property
    def margin(self) -> tuple[int, ...]:
        """Zeros: the output is as large as the input."""
        return (0,) * len(self.total_stride)

    def next_valid_input(self, size: Sequence[int], /) -> tuple[int, ...]:
        """Return `size` rounded up to multiples of the total stride, as MONAI's U-Nets need it."""
        return tuple(_round_up(n, stride) for n, stride in zip(size, self.total_stride, strict=True))

    def input_for_output(self, size: Sequence[int], /) -> tuple[int, ...]:
        """Return the same as `next_valid_input`."""
        return self.next_valid_input(size)


@dataclass(frozen=True)
class Tile:
    """One pass of the network.

    Args:
        window: the network's input, in the extended image: the image with `TilePlan.margin` voxels before it and as
            many as needed after it (so no slice is negative).
        keep: the region of the image that this tile computes; without `extend`, those of all tiles partition the image.
        trim: the same region in the coordinates of the network's output for `window`.
    """

    window: tuple[slice, ...]
    keep: tuple[slice, ...]
    trim: tuple[slice, ...]

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


class _Span(NamedTuple):
    """One axis of a tile."""

    window: slice
    keep: slice
    trim: slice

    def extended(self, size: int, extend: int) -> _Span:
        """Return the span with voxels of the next one, up to the end of an axis of `size` voxels."""
        keep, trim = self.keep, self.trim
        more = min(extend, size - keep.stop)
        return _Span(self.window, slice(keep.start, keep.stop + more), slice(trim.start, trim.stop + more))


def smallest_tile(shapes: TileableShapes, *, halo: Sequence[int] | None = None, extend: int = 0) -> tuple[int, ...]:
    """Return the smallest tile per axis for images of any size; the arguments are those of `plan_tiles`.

    Example:
        >>> smallest_tile(SameSizeShapes(total_stride=(16, 16), halo=(48, 8)))
        (112, 32)
    """
    if any(shapes.margin):
        return tuple(shapes.input_for_output([stride + extend for stride in shapes.total_stride]))
    halo = [h + extend for h in (shapes.halo if halo is None else halo)]
    # without a halo the last window may have to start a stride earlier, see `_padded_axis`
    least = [2 * s if s > 1 else 1 for s in shapes.total_stride]
    return tuple(max(_round_up(2 * h, s) + s, n) for h, s, n in zip(halo, shapes.total_stride, least, strict=True))


def plan_tiles(
    image_size: Sequence[int],
    tile_size: Sequence[int | None] | None,
    *,
    shapes: TileableShapes,
    halo: Sequence[int] | None = None,
    extend: int = 0,
) -> TilePlan:
    """Return windows for the network whose kept regions partition the image.

    Args:
        image_size: spatial size of the image.
        tile_size: largest network input per axis; None, or None for an axis, takes all of it. For a valid network a
            size between two that it accepts is rounded up to the next.
        shapes: shapes of the network.
        halo: voxels beyond the kept region on each side of a padded network; None takes `shapes.halo`, with which the
            result equals that of the whole image. A valid network always sees exactly its margin.
        extend: voxels of the next regions that each kept region includes at its far side on every axis, so that a
            caller can interpolate between neighbouring voxels within one tile.

    Raises:
        ConfigError: a tile that is too small for the network, or different numbers of axes.

    Example:
        >>> shapes = SameSizeShapes(total_stride=(4,), halo=(4,))
        >>> for tile in plan_tiles((22,), (16,), shapes=shapes).tiles:
        ...     print(tile.window, tile.keep, tile.trim)
        (slice(0, 16, None),) (slice(0, 12, None),) (slice(0, 12, None),)
        (slice(8, 24, None),) (slice(12, 22, None),) (slice(4, 14, None),)
    """
    image = tuple(image_size)
    axes = len(shapes.total_stride)
    tile = (None,) * axes if tile_size is None else tuple(tile_size)
    halo = tuple(shapes.halo if halo is None else halo)
    for name, value in (("image size", image), ("tile size", tile), ("halo", halo)):
        if len(value) != axes:
            raise ConfigError(f"{name} must have the network's number of axes", received=value, expected=axes)
    if min(image) < 1:
        raise ConfigError("image must have at least one voxel per axis", received=image)

    valid = any(shapes.margin)
    smallest = smallest_tile(shapes, halo=halo, extend=extend)
    # the window of the whole image; a padded network that rejects its size (below the total stride) gets more
    whole = shapes.input_for_output(image) if valid else shapes.next_valid_input(image)
    if any(t is not None and t < min(least, most) for t, least, most in zip(tile, smallest, whole, strict=True)):
        raise ConfigError(
            "tile is too small for the context that the network needs",
            received=tile,
            expected=f"at least {smallest} if the image is larger than the tile",
            remedy=f"set tile_size to {smallest} or more, or to null for the whole image in one pass",
        )
    limit = tuple(w if t is None else min(t, w) for t, w in zip(tile, whole, strict=True))
    if valid:
        spans = _valid_spans(image, limit, shapes, extend)
    else:
        sizes = zip(image, limit, whole, shapes.total_stride, halo, strict=True)
        spans = [_padded_axis(n, total, window, stride, h + extend) for n, window, total, stride, h in sizes]
    spans = [[span.extended(size, extend) for span in axis] for axis, size in zip(spans, image, strict=True)]
    tiles = tuple(Tile(*zip(*product, strict=True)) for product in itertools.product(*spans))
    return TilePlan(image_size=image, margin=tuple(shapes.margin), tiles=tiles)


def _padded_axis(size: int, total: int, window: int, stride: int, halo: int) -> list[_Span]:
    """Cut `total` voxels, the first `size` of which belong to the image, into windows that overlap."""
    if total <= window:
        return [_Span(slice(0, total), slice(0, size), slice(0, size))]
    window = window // stride * stride
    # window 16, halo 4, stride 4; = is kept, - is context. At both ends of the image the network's own padding acts as
    # it does on the whole image.
    #   [============----]
    #           [----========----]
    #                   [----==========]  the last window is as short as the image allows
    step = (window - 2 * halo) // stride * stride
    lead = (window - step) // 2  # at least the halo; the remainder of rounding the step goes to both sides
    origins = range(0, _round_up(total - window, step) + 1, step)
    spans = []
    for origin in origins:
        first, last = origin == 0, origin == origins[-1]
        begin = 0 if first else origin + lead
        end = size if last else origin + step + lead
        # a last window shorter than the stride would have no voxel on the coarsest level, so it starts earlier
        start = min(origin, (total - stride) // stride * stride) if last else origin
        stop = total if last else origin + window
        spans.append(_Span(slice(start, stop), slice(begin, end), slice(begin - start, end - start)))
    return spans


def _valid_spans(
    image: tuple[int, ...], limit: tuple[int, ...], shapes: TileableShapes, extend: int
) -> list[list[_Span]]:
    """Return the spans of a network that loses `margin` voxels on each side (Ronneberger et al. 2015, figure 2)."""
    window = shapes.next_valid_input(limit)
    output = [w - 2 * margin for w, margin in zip(window, shapes.margin, strict=True)]
    # the 2015 network returns 388 for 572, and the paper's tiles abut at 388 = 24 * 16 + 4; but a window that starts 4
    # voxels off the multiples of 16 is pooled in another phase, which makes a seam, so the step is 384
    steps = [(n - extend) // stride * stride for n, stride in zip(output, shapes.total_stride, strict=True)]
    # the last window of an axis is no larger than the rest of the image
    origins = [
        range(0, _round_up(size - n, step) + 1, step) if n < size else range(1)
        for size, n, step in zip(image, output, steps, strict=True)
    ]
    rest = shapes.input_for_output([size - axis[-1] for size, axis in zip(image, origins, strict=True)])
    axes: list[list[_Span]] = []
    for size, full, last, step, starts in zip(image, window, rest, steps, origins, strict=True):
        spans = []
        for start in starts:
            width, end = (last, size) if start == starts[-1] else (full, start + step)
            spans.append(_Span(slice(start, start + width), slice(start, end), slice(0, end - start)))
        axes.append(spans)
    return axes


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
