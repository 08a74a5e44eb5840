"""Which tiles a file of a network takes: the same as the network, with the smallest left out."""

from __future__ import annotations

from dataclasses import dataclass

from medunet.inferers import smallest_tile
from medunet.networks import UNetShapes

ROOM = 2
"""Formats with a largest tile take at least this many times the usual one on each axis."""


@dataclass(frozen=True)
class TileSizes:
    """Sizes `multiple * n + remainder` that are at least `least`, per axis.

    The smallest size of the network is left out: with one voxel on the coarsest level some engines would take it for
    an axis that can be repeated.

    Example:
        >>> TileSizes.of(UNetShapes.of(2, 5, padding="valid")).least
        (204, 204)
        >>> TileSizes.of(UNetShapes.of(3, 3)).example()
        (13, 14, 15)
    """

    least: tuple[int, ...]
    remainder: tuple[int, ...]
    multiple: tuple[int, ...]

    @classmethod
    def of(cls, shapes: UNetShapes) -> TileSizes:
        """Those of a network."""
        stride = shapes.total_stride
        smallest = shapes.next_valid_input((1,) * shapes.spatial_dims)
        least = tuple(n + s for n, s in zip(smallest, stride, strict=True))
        if shapes.padding == "same":  # any size: what is odd is padded on the way up
            return cls(least, (0,) * len(stride), (1,) * len(stride))
        return cls(least, tuple(n % s for n, s in zip(smallest, stride, strict=True)), stride)

    def fit(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The smallest accepted size that is not smaller.

        Example:
            >>> TileSizes.of(UNetShapes.of(2, 5, padding="valid")).fit((560, 572))
            (572, 572)
        """
        return tuple(
            max(least, n + (rest - n) % step)
            for n, least, rest, step in zip(size, self.least, self.remainder, self.multiple, strict=True)
        )

    def example(self) -> tuple[int, ...]:
        """A size that is odd, larger than the least, and another one on every axis."""
        return self.fit(tuple(n + (n // 2 | 1) + axis for axis, n in enumerate(self.least)))


def largest_tile(shapes: UNetShapes, patch: tuple[int, ...]) -> tuple[int, ...]:
    """The tile for a format that must name a largest: with it images of any size are evaluated exactly.

    Within a tile that lies inside an image only what is a halo away from all its edges is kept. So the largest one
    holds the usual patch and what that sees around it:

    ```
    [---- halo ----|==== patch ====|---- halo ----]
    ```

    Args:
        shapes: of the network.
        patch: a usual tile.

    Example:
        >>> largest_tile(UNetShapes.of(3, 4), (40, 56, 40))
        (152, 168, 152)
    """
    sizes = TileSizes.of(shapes)
    seen = shapes.margin if any(shapes.margin) else shapes.halo
    wanted = (
        tuple(n + 2 * context for n, context in zip(patch, seen, strict=True)),
        tuple(ROOM * n for n in patch),
        smallest_tile(shapes, extend=1),  # labels are interpolated between neighbours within one tile
        sizes.example(),  # of the comparison
    )
    return sizes.fit(tuple(map(max, *wanted)))
