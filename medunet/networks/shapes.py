"""Integer arithmetic of U-Nets: accepted sizes, output sizes, receptive field, halo. No torch.

All of it follows from one picture. Level 0 is the finest; pixel `j` of level `l + 1` covers the pixels
`s * j ... s * j + s - 1` of level `l`, where `s` is the stride of that transition:

```
level 0   | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |      total stride 4: what the network computes
level 1   |   0   |   1   |   2   |   3   |      repeats when the image moves by 4 pixels,
level 2   |       0       |       1       |      not when it moves by 1, 2 or 3
```

So a tile reproduces the whole image only if (a) its origin is a multiple of `total_stride`, (b) its far end is a
multiple of `total_stride` or the image's own end, and (c) a pixel is at least `halo` away from every edge at which the
tile ends and the image continues. A valid network satisfies (c) by itself; its step from tile to tile must be a
multiple of `total_stride`, not its output size: 572 -> 388 advances by 384.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medunet.errors import ConfigError

from .arguments import PerAxis, choose, integer, per_axis, per_row

SPATIAL_DIMS = (2, 3)
PADDINGS = ("same", "valid")
DOWNSAMPLES = ("maxpool", "conv")
UPSAMPLES = ("transposed", "linear")


@dataclass(frozen=True)
class UNetShapes:
    """Sizes of a U-Net's input and output.

    `UNetShapes.of` takes short forms (`strides=2`); the fields are the long form. Max-pooling and strided convolution
    (kernel = stride) have the same geometry.

    Attributes:
        spatial_dims: 2 or 3.
        kernel_sizes: kernel of the convolutions, per level (finest first), per axis.
        strides: stride between level `l` and `l + 1`, per transition, per axis.
        convs_per_level: number of convolutions of an encoder level, and of a decoder level.
        padding: `"same"` keeps the size within a level, `"valid"` uses no pixel outside the image.
        downsample: `"maxpool"` or `"conv"`, both with kernel = stride.
        upsample: `"transposed"` (kernel = stride) or `"linear"` (half-pixel centres, `align_corners=False`).
        head_kernel_size: kernel of the output convolution.
        resize_output: whether a valid network's output is interpolated to the size of its input.

    Raises:
        ConfigError: values that do not fit each other.

    Example:
        >>> paper = UNetShapes.of(2, 5, padding="valid")
        >>> paper.output_size((572, 572)), paper.margin, paper.total_stride
        ((388, 388), (92, 92), (16, 16))
        >>> UNetShapes.of(3, 4).output_size((33, 34, 35))
        (33, 34, 35)
    """

    spatial_dims: int
    kernel_sizes: tuple[PerAxis, ...]
    strides: tuple[PerAxis, ...]
    convs_per_level: int = 2
    padding: Literal["same", "valid"] = "same"
    downsample: Literal["maxpool", "conv"] = "maxpool"
    upsample: Literal["transposed", "linear"] = "transposed"
    head_kernel_size: PerAxis = ()
    resize_output: bool = False

    def __post_init__(self) -> None:
        choose("spatial_dims", self.spatial_dims, SPATIAL_DIMS)
        choose("padding", self.padding, PADDINGS)
        choose("downsample", self.downsample, DOWNSAMPLES)
        choose("upsample", self.upsample, UPSAMPLES)
        integer("convs_per_level", self.convs_per_level)
        choose("resize_output", self.resize_output, (True, False))
        if len(self.kernel_sizes) < 2 or len(self.strides) != len(self.kernel_sizes) - 1:
            raise ConfigError(
                "a U-Net needs a kernel for each of its levels and a stride for each step between them",
                received=f"{len(self.kernel_sizes)} kernels and {len(self.strides)} strides",
                expected="at least 2 levels, and one stride fewer than kernels",
            )
        # the default of the head's kernel depends on spatial_dims
        head = per_axis("head_kernel_size", self.head_kernel_size or 1, self.spatial_dims)
        object.__setattr__(self, "head_kernel_size", head)
        self._check_symmetry()

    @classmethod
    def of(
        cls,
        spatial_dims: int,
        levels: int,
        *,
        kernel_sizes: int | Sequence[int | Sequence[int]] = 3,
        strides: int | Sequence[int | Sequence[int]] = 2,
        convs_per_level: int = 2,
        padding: str = "same",
        downsample: str = "maxpool",
        upsample: str = "transposed",
        head_kernel_size: int | Sequence[int] = 1,
        resize_output: bool = False,
    ) -> UNetShapes:
        """Build from `levels` resolutions and short forms: one integer for all, one per level, or per level and axis.

        Strides have one entry per transition, one fewer than levels.

        Raises:
            ConfigError: a value that does not fit.

        Example:
            >>> UNetShapes.of(3, 3, kernel_sizes=[[1, 3, 3], 3, 3], strides=[[1, 2, 2], 2]).total_stride
            (2, 4, 4)
        """
        choose("spatial_dims", spatial_dims, SPATIAL_DIMS)
        integer("levels", levels, least=2)
        return cls(
            spatial_dims=spatial_dims,
            kernel_sizes=per_row("kernel_sizes", kernel_sizes, levels, spatial_dims, "level"),
            strides=per_row("strides", strides, levels - 1, spatial_dims, "transition between levels"),
            convs_per_level=convs_per_level,
            padding=padding,  # type: ignore[arg-type]  # checked in __post_init__
            downsample=downsample,  # type: ignore[arg-type]  # checked in __post_init__
            upsample=upsample,  # type: ignore[arg-type]  # checked in __post_init__
            head_kernel_size=per_axis("head_kernel_size", head_kernel_size, spatial_dims),
            resize_output=resize_output,
        )

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.kernel_sizes)

    @property
    def total_stride(self) -> PerAxis:
        """Product of the strides: input pixels along one pixel of the coarsest level."""
        return tuple(math.prod(row[axis] for row in self.strides) for axis in range(self.spatial_dims))

    @property
    def receptive_radius(self) -> PerAxis:
        """Farthest input pixel that an output pixel can depend on, on either side, in input pixels (theoretical).

        The maximum over the `total_stride` positions an output pixel can have within a coarsest pixel. In a valid
        network it may exceed `margin` by less than `total_stride`: pixels deeper in a tile may look farther.
        """
        return tuple(self._radius(axis) for axis in range(self.spatial_dims))

    @property
    def halo(self) -> PerAxis:
        """`receptive_radius` rounded up to `total_stride`: context that a padded network's tile needs on each side."""
        return tuple(
            -(-radius // stride) * stride
            for radius, stride in zip(self.receptive_radius, self.total_stride, strict=True)
        )

    @property
    def margin(self) -> PerAxis:
        """Pixels by which the output is smaller than the input on each side; zeros if the size is kept."""
        if self.padding == "same" or self.resize_output:
            return (0,) * self.spatial_dims
        return tuple(self._lost(axis) // 2 for axis in range(self.spatial_dims))

    def output_size(self, size: Sequence[int]) -> PerAxis:
        """Return the size of the output for an input of `size`.

        Raises:
            ConfigError: the network does not accept `size`.
        """
        wanted = self._sizes(size)
        accepted = self.next_valid_input(wanted)
        if accepted != wanted:
            raise ConfigError(
                "the network does not accept this image size",
                received=wanted,
                expected=self._rule(),
                remedy=f"pad the image to {accepted}, or use fewer levels",
            )
        return tuple(n - 2 * m for n, m in zip(wanted, self.margin, strict=True))

    def next_valid_input(self, size: Sequence[int]) -> PerAxis:
        """Return the smallest accepted input of at least `size` on every axis.

        Example:
            >>> UNetShapes.of(2, 5, padding="valid").next_valid_input((512, 573))
            (524, 588)
        """
        return tuple(self._accepted(n, axis) for axis, n in enumerate(self._sizes(size)))

    def input_for_output(self, size: Sequence[int]) -> PerAxis:
        """Return the smallest accepted input whose output is at least `size` on every axis.

        Example:
            >>> UNetShapes.of(2, 5, padding="valid").input_for_output((388, 1))
            (572, 188)
        """
        grown = tuple(n + 2 * m for n, m in zip(self._sizes(size), self.margin, strict=True))
        return self.next_valid_input(grown)

    def coarsest_size(self, size: Sequence[int]) -> PerAxis:
        """Return the size of the coarsest level's feature maps for an input of `size`.

        Raises:
            ConfigError: the network does not accept `size`.

        Example:
            >>> UNetShapes.of(2, 5, padding="valid").coarsest_size((572, 572))
            (28, 28)
        """
        self.output_size(size)
        if self.padding == "same":
            return tuple(n // stride for n, stride in zip(size, self.total_stride, strict=True))
        return tuple((n - self._encoder_side(0, axis)) // self.total_stride[axis] for axis, n in enumerate(size))

    # ----- one axis -----------------------------------------------------------------------------------------------

    def _level_loss(self, level: int, axis: int) -> int:
        """Return the pixels that the convolutions of one valid level remove, both sides together."""
        return self.convs_per_level * (self.kernel_sizes[level][axis] - 1)

    def _up_loss(self, stride: int) -> int:
        """Return the pixels that a valid upsampling removes: in linear ones the outer half coarse pixels."""
        return 2 * (stride // 2) if self.upsample == "linear" else 0

    def _encoder_side(self, bottom: int, axis: int) -> int:
        """Return the input that leaves `bottom` pixels at the end of the coarsest level of a valid network."""
        n = bottom + self._level_loss(self.levels - 1, axis)
        for level in reversed(range(self.levels - 1)):
            n = n * self.strides[level][axis] + self._level_loss(level, axis)
        return n

    def _decoder_side(self, bottom: int, axis: int) -> int:
        """Return the output of a valid network from `bottom` pixels at the coarsest level; 0 if none are left."""
        n = bottom
        for level in reversed(range(self.levels - 1)):
            stride = self.strides[level][axis]
            n = n * stride - self._up_loss(stride) - self._level_loss(level, axis)
            if n < 1:
                return 0
        return n - (self.head_kernel_size[axis] - 1)

    def _smallest_bottom(self, axis: int) -> int:
        bottom = 1
        while self._decoder_side(bottom, axis) < 1:
            bottom += 1
        return bottom

    def _lost(self, axis: int) -> int:
        bottom = self._smallest_bottom(axis)
        return self._encoder_side(bottom, axis) - self._decoder_side(bottom, axis)

    def _accepted(self, size: int, axis: int) -> int:
        stride = self.total_stride[axis]
        if self.padding == "same":
            return max(size, stride)
        # _encoder_side is affine in its argument with slope total_stride
        smallest = self._encoder_side(self._smallest_bottom(axis), axis)
        return smallest + max(0, -(-(size - smallest) // stride)) * stride

    def _radius(self, axis: int) -> int:
        return max(
            max(pixel - low, high - pixel)
            for pixel in range(self.total_stride[axis])
            for low, high in [self._needs(pixel, axis)]
        )

    def _needs(self, pixel: int, axis: int) -> tuple[int, int]:
        """Return the first and last input pixel that output pixel `pixel` depends on, back through the network."""
        low, high = _grown(pixel, pixel, self.head_kernel_size[axis] - 1)
        wanted = []  # pixels of every encoder level's output that its skip connection needs
        for level in range(self.levels - 1):
            low, high = _grown(low, high, self._level_loss(level, axis))
            wanted.append((low, high))
            stride = self.strides[level][axis]
            low, high = _coarser(low, high, stride, linear=self.upsample == "linear")
        for level in reversed(range(self.levels)):
            low, high = _grown(low, high, self._level_loss(level, axis))
            if level > 0:
                stride = self.strides[level - 1][axis]
                skip_low, skip_high = wanted[level - 1]
                low, high = min(low * stride, skip_low), max(high * stride + stride - 1, skip_high)
        return low, high

    # ----- checks -------------------------------------------------------------------------------------------------

    def _check_symmetry(self) -> None:
        """Reject kernels without a centre: even ones in "same", an odd loss of pixels in "valid"."""
        rows = {
            **{f"kernel_sizes[{i}]": row for i, row in enumerate(self.kernel_sizes)},
            "head_kernel_size": self.head_kernel_size,
        }
        for name, row in rows.items():
            convs = 1 if name == "head_kernel_size" else self.convs_per_level
            if self.padding == "same" and any(k % 2 == 0 for k in row):
                raise ConfigError(
                    f'{name} is even, which has no centre to pad around in padding="same"',
                    received=row,
                    expected="odd kernels",
                )
            if any(convs * (k - 1) % 2 for k in row):
                raise ConfigError(
                    f"{name} makes a level lose an odd number of pixels, so its output has no centre",
                    received=f"{convs} convolution(s) of kernel {row}",
                    expected="odd kernels, or an even number of convolutions per level",
                )

    def _sizes(self, size: Sequence[int]) -> PerAxis:
        try:
            sizes = tuple(operator.index(n) for n in size)
        except TypeError:
            sizes = ()
        if len(sizes) != self.spatial_dims or any(n < 1 for n in sizes):
            raise ConfigError(
                "not a spatial size for this network",
                received=size,
                expected=f"{self.spatial_dims} integers >= 1",
            )
        return sizes

    def _rule(self) -> str:
        smallest = self.next_valid_input((1,) * self.spatial_dims)
        if self.padding == "same":
            return f"at least {smallest}"
        return f"{smallest} plus multiples of {self.total_stride}"


def _grown(low: int, high: int, loss: int) -> tuple[int, int]:
    return low - loss // 2, high + loss // 2


def _coarser(low: int, high: int, stride: int, *, linear: bool) -> tuple[int, int]:
    """Return the coarse pixels that the fine pixels `low ... high` are upsampled from.

    ```
    coarse    |     0     |     1     |     half-pixel centres, stride 2: fine pixel 1 lies a quarter of a coarse
    fine      |  0  |  1  |  2  |  3  |     pixel right of the centre of coarse 0, and takes from coarse 0 and 1
    ```
    """
    if not linear:
        return low // stride, high // stride
    # fine pixel p is at (p + 1/2) / s - 1/2 = (2p + 1 - s) / 2s: the floor and the ceiling of that
    return (2 * low + 1 - stride) // (2 * stride), -(-(2 * high + 1 - stride) // (2 * stride))
