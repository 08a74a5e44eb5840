"""Integer arithmetic of U-Nets: accepted sizes, output sizes, receptive field, halo. No torch.

Pixel `j` of level `l + 1` covers the pixels `s * j ... s * j + s - 1` of level `l`, where `s` is the stride of that
transition. So a tile reproduces the whole image if (a) its origin is a multiple of `total_stride`, (b) its far end is
one too, or the image's own end, and (c) a pixel is at least `halo` away from every edge at which the tile ends and the
image continues. A valid network satisfies (c) by itself.
"""

import math
import operator
from collections.abc import Sequence
from itertools import count

from medunet.errors import ConfigError

from .arguments import PerAxis, PerRow, choose, counts, integer, per_axis, per_row


class UNetShapes:
    """Sizes of a U-Net's input and output.

    The attributes have the names of the arguments; kernels and strides are expanded to `[level][axis]`.

    Args:
        spatial_dims: 2 or 3.
        levels: number of resolutions, at least 2.
        kernel_sizes: kernels of the convolutions: one integer, one per level (finest first), or one per level and axis.
        strides: factors between levels: one integer, one per transition, or one per transition and axis.
        convs_per_level: number of convolutions of each encoder level: one integer, or one per level.
        decoder_convs: the same for decoder levels; None: as the encoder level.
        padding: `"same"` keeps the size within a level, `"valid"` uses no pixel outside the image.
        downsample: `"maxpool"` or `"conv"`, both with kernel = stride and thus with the same geometry; `"strided"`: by
            the first convolution of a level, which needs sizes that are multiples of the total stride.
        upsample: `"transposed"` (kernel = stride) or `"linear"` (half-pixel centres, `align_corners=False`).
        head_kernel_size: kernel of the output convolution: one integer, or one per axis.
        resize_output: whether a valid network's output is interpolated to the size of its input.

    Raises:
        ConfigError: values that do not fit each other.

    Examples:
        >>> paper = UNetShapes(2, 5, padding="valid")
        >>> paper.output_size((572, 572)), paper.margin, paper.total_stride
        ((388, 388), (92, 92), (16, 16))
        >>> UNetShapes(3, 3, kernel_sizes=[[1, 3, 3], 3, 3], strides=[[1, 2, 2], 2]).total_stride
        (2, 4, 4)
    """

    def __init__(
        self,
        spatial_dims: int,
        levels: int,
        *,
        kernel_sizes: PerRow = 3,
        strides: PerRow = 2,
        convs_per_level: int | Sequence[int] = 2,
        decoder_convs: int | Sequence[int] | None = None,
        padding: str = "same",
        downsample: str = "maxpool",
        upsample: str = "transposed",
        head_kernel_size: int | Sequence[int] = 1,
        resize_output: bool = False,
    ) -> None:
        choose("spatial_dims", spatial_dims, (2, 3))
        choose("padding", padding, ("same", "valid"))
        choose("downsample", downsample, ("maxpool", "conv", "strided"))
        choose("upsample", upsample, ("transposed", "linear"))
        choose("resize_output", resize_output, (True, False))
        self.spatial_dims = spatial_dims
        self.levels = integer("levels", levels, least=2)
        self.kernel_sizes = per_row("kernel_sizes", kernel_sizes, levels, spatial_dims, "level")
        self.strides = per_row("strides", strides, levels - 1, spatial_dims, "transition between levels")
        self.convs_per_level = counts("convs_per_level", convs_per_level, levels, "level")
        self.decoder_convs = self.convs_per_level[:-1]
        if decoder_convs is not None:
            self.decoder_convs = counts("decoder_convs", decoder_convs, levels - 1, "decoder level")
        self.padding = padding
        self.downsample = downsample
        self.upsample = upsample
        self.head_kernel_size = per_axis("head_kernel_size", head_kernel_size, spatial_dims)
        self.resize_output = resize_output
        if downsample == "strided" and padding == "valid":
            raise ConfigError('downsample "strided" needs padding "same"', received=padding)
        rows = [(f"kernel_sizes[{i}]", row, self.convs_per_level[i]) for i, row in enumerate(self.kernel_sizes)]
        rows += [(f"kernel_sizes[{i}]", self.kernel_sizes[i], convs) for i, convs in enumerate(self.decoder_convs)]
        for name, row, convs in [*rows, ("head_kernel_size", self.head_kernel_size, 1)]:
            if any(k % 2 == 0 for k in row) and (padding == "same" or convs % 2):
                raise ConfigError(
                    f"{name} must be odd: a level that loses an odd number of pixels has no centre", received=row
                )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UNetShapes) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    @property
    def total_stride(self) -> PerAxis:
        """Product of the strides: input pixels along one pixel of the coarsest level."""
        return tuple(map(math.prod, zip(*self.strides, strict=True)))

    @property
    def receptive_radius(self) -> PerAxis:
        """Farthest input pixel that an output pixel can depend on, on either side, in input pixels (theoretical).

        In a valid network it may exceed `margin` by less than `total_stride`: pixels deeper in a tile may look farther.
        """
        needs = [[self._needs(pixel, axis) for pixel in range(s)] for axis, s in enumerate(self.total_stride)]
        return tuple(max(max(pixel - low, high - pixel) for pixel, (low, high) in enumerate(row)) for row in needs)

    @property
    def halo(self) -> PerAxis:
        """`receptive_radius` rounded up to `total_stride`: context that a padded network's tile needs on each side."""
        return tuple(map(round_up, self.receptive_radius, self.total_stride))

    @property
    def margin(self) -> PerAxis:
        """Pixels by which the output is smaller than the input on each side; zeros if the size is kept."""
        if self.padding == "same" or self.resize_output:
            return (0,) * self.spatial_dims
        bottoms = [self._smallest_bottom(axis) for axis in range(self.spatial_dims)]
        return tuple((self._input(n, axis) - self._output(n, axis)) // 2 for axis, n in enumerate(bottoms))

    def output_size(self, size: Sequence[int]) -> PerAxis:
        """Return the size of the output for an input of `size`.

        Raises:
            ConfigError: the network does not accept `size`.
        """
        wanted, accepted = self._sizes(size), self.next_valid_input(size)
        if accepted != wanted:
            smallest, valid = self.next_valid_input((1,) * self.spatial_dims), self.padding == "valid"
            raise ConfigError(
                "the network does not accept this image size",
                received=wanted,
                expected=f"{smallest} plus multiples of {self.total_stride}" if valid else f"at least {smallest}",
                remedy=f"pad the image to {accepted}, or use fewer levels",
            )
        return tuple(n - 2 * m for n, m in zip(wanted, self.margin, strict=True))

    def next_valid_input(self, size: Sequence[int]) -> PerAxis:
        """Return the smallest accepted input of at least `size` on every axis.

        Examples:
            >>> UNetShapes(2, 5, padding="valid").next_valid_input((512, 573))
            (524, 588)
        """
        return tuple(self._accepted(n, axis) for axis, n in enumerate(self._sizes(size)))

    def input_for_output(self, size: Sequence[int]) -> PerAxis:
        """Return the smallest accepted input whose output is at least `size` on every axis.

        Examples:
            >>> UNetShapes(2, 5, padding="valid").input_for_output((388, 1))
            (572, 188)
        """
        return self.next_valid_input([n + 2 * m for n, m in zip(self._sizes(size), self.margin, strict=True)])

    def coarsest_size(self, size: Sequence[int]) -> PerAxis:
        """Return the size of the coarsest level's feature maps for an input of `size`.

        Raises:
            ConfigError: the network does not accept `size`.

        Examples:
            >>> UNetShapes(2, 5, padding="valid").coarsest_size((572, 572))
            (28, 28)
        """
        self.output_size(size)
        lost = [0 if self.padding == "same" else self._input(0, axis) for axis in range(self.spatial_dims)]
        return tuple((n - less) // s for n, less, s in zip(size, lost, self.total_stride, strict=True))

    def _loss(self, level: int, axis: int, convs: int) -> int:
        """Return the pixels that valid convolutions of one level remove, both sides together."""
        return convs * (self.kernel_sizes[level][axis] - 1)

    def _input(self, bottom: int, axis: int) -> int:
        """Return the input size that leaves `bottom` pixels at the end of a valid network's coarsest level."""
        n = bottom + self._loss(self.levels - 1, axis, self.convs_per_level[-1])
        for level in reversed(range(self.levels - 1)):
            n = n * self.strides[level][axis] + self._loss(level, axis, self.convs_per_level[level])
        return n

    def _output(self, bottom: int, axis: int) -> int:
        """Return the output size of a valid network for `bottom` pixels at the coarsest level; 0 if none are left."""
        n = bottom
        for level in reversed(range(self.levels - 1)):
            stride = self.strides[level][axis]
            up_loss = 2 * (stride // 2) if self.upsample == "linear" else 0  # the outer half coarse pixels
            n = n * stride - up_loss - self._loss(level, axis, self.decoder_convs[level])
            if n < 1:
                return 0
        return n - (self.head_kernel_size[axis] - 1)

    def _smallest_bottom(self, axis: int) -> int:
        return next(n for n in count(1) if self._output(n, axis) > 0)

    def _accepted(self, size: int, axis: int) -> int:
        stride = self.total_stride[axis]
        if self.downsample == "strided":
            return round_up(size, stride)
        if self.padding == "same":
            return max(size, stride)
        smallest = self._input(self._smallest_bottom(axis), axis)
        return smallest + round_up(max(0, size - smallest), stride)

    def _needs(self, pixel: int, axis: int) -> tuple[int, int]:
        """Return the first and last input pixel that output pixel `pixel` depends on, back through the network."""
        reach = (self.head_kernel_size[axis] - 1) // 2
        low, high = pixel - reach, pixel + reach
        wanted = []  # pixels of every encoder level's output that its skip connection needs
        for level in range(self.levels - 1):
            reach, s = self._loss(level, axis, self.decoder_convs[level]) // 2, self.strides[level][axis]
            low, high = low - reach, high + reach
            wanted.append((low, high))
            if self.upsample == "linear":
                # fine pixel p is at (p + 1/2) / s - 1/2 = (2p + 1 - s) / 2s: the floor and the ceiling of that
                low, high = (2 * low + 1 - s) // (2 * s), -(-(2 * high + 1 - s) // (2 * s))
            else:
                low, high = low // s, high // s
        for level in reversed(range(self.levels)):
            strided = self.downsample == "strided" and level > 0
            reach = self._loss(level, axis, self.convs_per_level[level] - strided) // 2
            low, high = low - reach, high + reach
            if level > 0:
                s, (skip_low, skip_high) = self.strides[level - 1][axis], wanted[level - 1]
                reach = self.kernel_sizes[level][axis] // 2 if strided else 0  # of the convolution that downsamples
                low, high = min(low * s - reach, skip_low), max(high * s + max(s - 1, reach), skip_high)
        return low, high

    def _sizes(self, size: Sequence[int]) -> PerAxis:
        try:
            sizes = tuple(operator.index(n) for n in size)
        except TypeError:
            sizes = ()
        if len(sizes) != self.spatial_dims or min(sizes) < 1:
            raise ConfigError(f"image size must be {self.spatial_dims} positive integers", received=size)
        return sizes


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is at least a number."""
    return -(-number // multiple) * multiple
