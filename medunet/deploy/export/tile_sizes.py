"""Which tiles a file of a network takes: the same as the network, with the smallest left out."""

from __future__ import annotations

from dataclasses import dataclass

from medunet.networks import UNetShapes


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
