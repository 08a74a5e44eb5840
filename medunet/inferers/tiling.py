"""Where the tiles of the overlap-tile strategy lie: integers only, no tensor.

Ronneberger et al. 2015 (figure 2) cut an image into tiles so that the stitched output has no seam. It has none when two
things hold, and this module takes care of both:

1. **Context.** A voxel is kept only from a window that holds everything the voxel depends on, or that ends where the
   image ends, as a pass over the whole image does.
2. **Phase.** Pooling by 2 pairs the voxels (0, 1), (2, 3), ... of whatever it is given. A window that started at voxel
   1 would pair (1, 2), (3, 4), ...: another function. So windows start at multiples of the network's total stride.

Tiles are planned an axis at a time; a tile of the image is the product of one span of each axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from medunet.errors import ConfigError


class TileableShapes(Protocol):
    """What planning needs to know of a network; `medunet.networks.shapes.UNetShapes` is one."""

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Product of all strides per axis, in voxels: the period of the network's behaviour under translation."""

    @property
    def halo(self) -> tuple[int, ...]:
        """Voxels beyond the kept region, on each side, that make a window of a padded network exact."""

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels that the output lacks on each side; zeros for a padded network."""

    def next_valid_input(self, size: Sequence[int], /) -> tuple[int, ...]:
        """Smallest size the network accepts that is not smaller than `size`."""

    def input_for_output(self, size: Sequence[int], /) -> tuple[int, ...]:
        """Smallest size the network accepts whose output is not smaller than `size`."""


@dataclass(frozen=True)
class SameSizeShapes:
    """Shapes of a network whose output is as large as its input and whose input is a multiple of its total stride.

    Args:
        total_stride: product of all strides per axis, in voxels.
        halo: voxels to see beyond the kept region, on each side, per axis.

    Example:
        >>> SameSizeShapes(total_stride=(8, 4), halo=(16, 16)).next_valid_input((5, 33))
        (8, 36)
    """

    total_stride: tuple[int, ...]
    halo: tuple[int, ...]

    @property
    def margin(self) -> tuple[int, ...]:
        """Zeros: nothing is lost at the sides."""
        return (0,) * len(self.total_stride)

    def next_valid_input(self, size: Sequence[int], /) -> tuple[int, ...]:
        """Return `size` rounded up to multiples of the total stride, as MONAI's U-Nets need it."""
        return tuple(_round_up(n, stride) for n, stride in zip(size, self.total_stride, strict=True))

    def input_for_output(self, size: Sequence[int], /) -> tuple[int, ...]:
        """The same as `next_valid_input`: input and output are equally large."""
        return self.next_valid_input(size)


@dataclass(frozen=True)
class Tile:
    """One pass of the network: what it reads, and which part of its output goes where.

    Args:
        window: what the network reads, in the extended image: the image with `TilePlan.margin` voxels added before it
            and as many as needed after it (so no slice is negative).
        keep: the region of the image that this tile answers for; the `keep` of all tiles partition the image, but for
            the `extend` of `plan_tiles`.
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
    """All tiles of one image.

    Args:
        image_size: spatial size of the image.
        margin: voxels per axis by which the extended image starts before the image.
        tiles: in the order of the image, last axis fastest.
    """

    image_size: tuple[int, ...]
    margin: tuple[int, ...]
    tiles: tuple[Tile, ...]

    def by_window_size(self) -> dict[tuple[int, ...], list[Tile]]:
        """Tiles that may share a batch, in the order in which they first occur."""
        groups: dict[tuple[int, ...], list[Tile]] = {}
        for tile in self.tiles:
            groups.setdefault(tile.window_size, []).append(tile)
        return groups


class _Span(NamedTuple):
    """A tile along one axis."""

    window: slice
    keep: slice
    trim: slice


def smallest_tile(shapes: TileableShapes, *, halo: Sequence[int] | None = None, extend: int = 0) -> tuple[int, ...]:
    """Smallest tile per axis with which an image of any size can be cut.

    Args:
        shapes: of the network.
        halo: voxels per axis, as in `plan_tiles`.
        extend: as in `plan_tiles`.

    Example:
        >>> smallest_tile(SameSizeShapes(total_stride=(16, 16), halo=(48, 8)))
        (112, 32)
    """
    if any(shapes.margin):
        return tuple(shapes.input_for_output([stride + extend for stride in shapes.total_stride]))
    halo = [h + extend for h in (shapes.halo if halo is None else halo)]
    # Without a halo the last window may have to start a stride earlier (see `_padded_axis`), which takes room for two.
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
    """Cut an image into windows for the network so that the kept regions partition the image.

    Args:
        image_size: spatial size of the image.
        tile_size: largest network input per axis; None, or None for an axis, takes all of it. For a valid network a
            size between two that it accepts is rounded up to the next.
        shapes: of the network.
        halo: voxels that a padded network sees beyond the kept region on each side; None takes `shapes.halo`, with
            which the result equals that of the whole image. A valid network always sees exactly its margin.
        extend: voxels that each kept region takes of the next ones, at its far side on every axis, so that a caller can
            interpolate between neighbouring voxels within one tile.

    Raises:
        ConfigError: the tile is too small for the network, or the numbers of axes differ.

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
            raise ConfigError(f"{name} does not have the network's number of axes", received=value, expected=axes)
    if min(image) < 1:
        raise ConfigError("image has no voxel", received=image, remedy="give an image of at least one voxel per axis")

    valid = any(shapes.margin)
    smallest = smallest_tile(shapes, halo=halo, extend=extend)
    # The window that takes in the whole image; a padded network that does not accept its size (smaller than the total
    # stride) gets more at the far side.
    whole = shapes.input_for_output(image) if valid else shapes.next_valid_input(image)
    if any(t is not None and t < min(least, most) for t, least, most in zip(tile, smallest, whole, strict=True)):
        raise ConfigError(
            "tile is too small for the context that the network needs",
            received=tile,
            expected=f"at least {smallest} where the image is larger than the tile",
            remedy=f"set tile_size to {smallest} or more, or to null for the whole image in one pass",
        )
    limit = tuple(w if t is None else min(t, w) for t, w in zip(tile, whole, strict=True))
    if valid:
        spans = _valid_spans(image, limit, shapes, extend)
    else:
        spans = _padded_spans(image, limit, whole, shapes, tuple(h + extend for h in halo))
    spans = [[_extended(span, size, extend) for span in axis] for axis, size in zip(spans, image, strict=True)]
    tiles = tuple(
        Tile(
            window=tuple(span.window for span in product),
            keep=tuple(span.keep for span in product),
            trim=tuple(span.trim for span in product),
        )
        for product in itertools.product(*spans)
    )
    return TilePlan(image_size=image, margin=tuple(shapes.margin), tiles=tiles)


def _extended(span: _Span, size: int, extend: int) -> _Span:
    more = min(extend, size - span.keep.stop)
    return _Span(
        span.window, slice(span.keep.start, span.keep.stop + more), slice(span.trim.start, span.trim.stop + more)
    )


def _padded_spans(
    image: tuple[int, ...],
    limit: tuple[int, ...],
    whole: tuple[int, ...],
    shapes: TileableShapes,
    halo: tuple[int, ...],
) -> list[list[_Span]]:
    """Spans of a network whose output is as large as its input."""
    return [
        [_Span(slice(0, total), slice(0, size), slice(0, size))]
        if total <= window
        else _padded_axis(size, total, window // stride * stride, stride, context)
        for size, window, total, stride, context in zip(image, limit, whole, shapes.total_stride, halo, strict=True)
    ]


def _padded_axis(size: int, total: int, window: int, stride: int, halo: int) -> list[_Span]:
    """Cut `total` voxels, the first `size` of which belong to the image, into windows that overlap."""
    # window 16, halo 4, stride 4; = is kept, - is seen only. Nothing is added where the image begins and ends, so there
    # the network's own padding acts as it does on the whole image.
    #   [============----]
    #           [----========----]
    #                   [----==========]  the last window is as short as the image allows
    step = (window - 2 * halo) // stride * stride
    lead = (window - step) // 2  # at least the halo; what rounding the step left over goes to both sides
    origins = range(0, _round_up(total - window, step) + 1, step)
    spans = []
    for origin in origins:
        first, last = origin == 0, origin == origins[-1]
        begin = 0 if first else origin + lead
        end = size if last else origin + step + lead
        # A last window shorter than the stride would have no voxel on the coarsest level: start it earlier.
        start = min(origin, (total - stride) // stride * stride) if last else origin
        stop = total if last else origin + window
        spans.append(_Span(slice(start, stop), slice(begin, end), slice(begin - start, end - start)))
    return spans


def _valid_spans(
    image: tuple[int, ...], limit: tuple[int, ...], shapes: TileableShapes, extend: int
) -> list[list[_Span]]:
    """Spans of a network that loses `margin` voxels on each side (Ronneberger et al. 2015, figure 2)."""
    window = shapes.next_valid_input(limit)
    output = [w - 2 * margin for w, margin in zip(window, shapes.margin, strict=True)]
    # The 2015 network returns 388 for 572, and the paper's tiles abut at 388 = 24 * 16 + 4. But a window that starts 4
    # voxels off the multiples of 16 is pooled in another phase and answers slightly otherwise: a seam. So: 384.
    steps = [(n - extend) // stride * stride for n, stride in zip(output, shapes.total_stride, strict=True)]
    # The last window of an axis is no larger than what is left of the image.
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
