"""Parts of a U-Net: convolution units, plain and residual blocks, encoder and decoder levels.

Every part can be scripted and keeps the memory format of its input. Convolutions before a normalisation have no bias,
because its shift replaces it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medunet.errors import ConfigError

from .arguments import PerAxis

NORMS: dict[str, dict[str, Any]] = {"batch": {}, "instance": {"affine": True}, "group": {"num_groups": 8}}
"""Normalisations and their default keywords: instance norm has scale and shift as in nnU-Net; 8 groups divide all
channel counts in use, which are multiples of 8."""

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    **{"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "prelu": nn.PReLU, "elu": nn.ELU, "selu": nn.SELU},
    **{"celu": nn.CELU, "gelu": nn.GELU, "relu6": nn.ReLU6, "swish": nn.SiLU, "mish": nn.Mish},
}
"""Activations by MONAI's name that act on every value alone (softmax and GLU mix channels) and can be scripted."""

INPLACE_ACTIVATIONS = ("relu", "leakyrelu", "elu", "selu", "celu", "relu6")
"""Activations that overwrite their input, which no gradient needs: a third less memory in training."""


@dataclass(frozen=True)
class Style:
    """Options that all convolutions of a network share, and the layers that follow from them.

    Attributes:
        spatial_dims: 2 or 3.
        same: whether convolutions pad with zeros to keep the size.
        norm: None, or name and keywords of the normalisation.
        act: name and keywords of the activation.
    """

    spatial_dims: int
    same: bool
    norm: tuple[str, dict[str, Any]] | None
    act: tuple[str, dict[str, Any]]

    def conv(
        self, in_channels: int, out_channels: int, kernel: PerAxis, *, stride: PerAxis | None = None, bias: bool = True
    ) -> nn.Module:
        """Return a convolution; with a stride, which equals the kernel, it is not padded."""
        layer = nn.Conv2d if self.spatial_dims == 2 else nn.Conv3d
        padding = tuple(k // 2 for k in kernel) if self.same and stride is None else (0,) * self.spatial_dims
        # mypy: torch types these arguments as tuples of exactly two or three integers.
        return layer(in_channels, out_channels, kernel, stride or 1, padding, bias=bias)  # type: ignore[arg-type]

    def up_conv(self, in_channels: int, out_channels: int, stride: PerAxis, *, bias: bool = True) -> nn.Module:
        """Return a transposed convolution with kernel = stride: every coarse pixel becomes `stride` fine ones."""
        layer = nn.ConvTranspose2d if self.spatial_dims == 2 else nn.ConvTranspose3d
        return layer(in_channels, out_channels, stride, stride, bias=bias)  # type: ignore[arg-type]  # as in conv

    def normalisation(self, channels: int) -> nn.Module:
        """Return the normalisation of `channels`, or the identity.

        Raises:
            ConfigError: keywords that the layer does not take, such as groups that do not divide the channels.
        """
        if self.norm is None:
            return nn.Identity()
        name, kwargs = self.norm
        kwargs = {**NORMS[name], **kwargs}
        is_2d = self.spatial_dims == 2
        try:
            if name == "group":
                return nn.GroupNorm(num_channels=channels, **kwargs)
            if name == "batch":
                return (nn.BatchNorm2d if is_2d else nn.BatchNorm3d)(channels, **kwargs)
            return (nn.InstanceNorm2d if is_2d else nn.InstanceNorm3d)(channels, **kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"norm cannot be built for {channels} channels ({error})",
                received=repr(self.norm),
                remedy='change the keywords of norm or the channels, e.g. ["group", {"num_groups": 4}]',
            ) from error

    def activation(self) -> nn.Module:
        """Return an activation.

        Raises:
            ConfigError: keywords that it does not take.
        """
        name, kwargs = self.act
        defaults = {"inplace": True} if name in INPLACE_ACTIVATIONS else {}
        try:
            return ACTIVATIONS[name](**{**defaults, **kwargs})
        except TypeError as error:
            raise ConfigError(f"act cannot be built ({error})", received=repr(self.act)) from error


class ConvUnit(nn.Module):
    """Convolution, normalisation, activation: `(B, in_channels, *spatial) -> (B, out_channels, *spatial')`."""

    def __init__(
        self,
        style: Style,
        in_channels: int,
        out_channels: int,
        *,
        kernel: PerAxis,
        stride: PerAxis | None = None,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.conv = style.conv(in_channels, out_channels, kernel, stride=stride, bias=style.norm is None)
        self.norm = style.normalisation(out_channels)
        self.act = style.activation() if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return self.act(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """Convolution units with a shortcut around all of them, activated after the sum (He et al. 2016, fig. 2).

    The shortcut is the identity, or a 1x1 convolution if the number of channels changes; a valid block crops it.
    """

    def __init__(self, style: Style, channels: Sequence[int], *, kernel: PerAxis) -> None:
        super().__init__()
        last = len(channels) - 2
        pairs = enumerate(itertools.pairwise(channels))
        self.units = nn.Sequential(*(ConvUnit(style, a, b, kernel=kernel, activate=i < last) for i, (a, b) in pairs))
        self.shortcut: nn.Module = nn.Identity()
        if channels[0] != channels[-1]:
            one = (1,) * style.spatial_dims
            self.shortcut = ConvUnit(style, channels[0], channels[-1], kernel=one, activate=False)
        self.act = style.activation()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the units and add the shortcut."""
        y = self.units(x)
        return self.act(y + self.shortcut(centre_crop(x, y)))


def conv_block(style: Style, channels: Sequence[int], *, kernel: PerAxis, residual: bool) -> nn.Module:
    """Return the convolutions of one level; `channels` lists those of its input and of every convolution."""
    if residual:
        return ResidualBlock(style, channels, kernel=kernel)
    pairs = itertools.pairwise(channels)
    return nn.Sequential(*(ConvUnit(style, before, after, kernel=kernel) for before, after in pairs))


class EncoderLevel(nn.Module):
    """Downsampling to a level and its convolutions: `(B, C, *spatial) -> (B, C', *(spatial / stride))`."""

    def __init__(self, down: nn.Module, convs: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.down = down
        self.convs = convs
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Downsample, convolve, drop out (in training)."""
        return self.dropout(self.convs(self.down(x)))


class Up(nn.Module):
    """Upsampling to the next finer level and concatenation with its skip connection, skip first.

    Padded networks pad the upsampled map with zeros at its far end if an odd size was halved:

    ```
    skip        | 0 | 1 | 2 | 3 | 4 |        pixel 4 has no partner, so pooling dropped it;
    upsampled   |   0   |   1   | + |        near ends stay aligned, wherever the image ends
    ```

    Valid networks crop the skip connection to the upsampled map about its centre.
    """

    def __init__(
        self,
        style: Style,
        in_channels: int,
        out_channels: int,
        *,
        stride: PerAxis,
        linear: bool,
        norm: bool = False,
        act: bool = False,
    ) -> None:
        super().__init__()
        self.same = style.same
        self.linear = linear
        self.scale = [float(s) for s in stride]
        self.mode = "bilinear" if style.spatial_dims == 2 else "trilinear"
        # linear interpolation at the border would take these pixels per side from outside the map, see UNetShapes
        self.border = [0 if style.same or not linear else s // 2 for s in stride]
        bias = not norm or style.norm is None
        self.conv: nn.Module
        if not linear:
            self.conv = style.up_conv(in_channels, out_channels, stride, bias=bias)
        elif in_channels != out_channels:
            # a 1x1 convolution and an interpolation commute, and before it there are fewer pixels to convolve
            self.conv = style.conv(in_channels, out_channels, (1,) * style.spatial_dims, bias=bias)
        else:
            self.conv = nn.Identity()
        self.norm = style.normalisation(out_channels) if norm else nn.Identity()
        self.act = style.activation() if act else nn.Identity()

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """`(B, in_channels, *coarse)` and `(B, S, *fine)` to `(B, S + out_channels, *fine')`."""
        x = self.conv(coarse)
        if self.linear:
            # half-pixel centres do not depend on the tile's size, as align_corners=True does, so tiles agree
            x = F.interpolate(x, scale_factor=self.scale, mode=self.mode, align_corners=False)
            for axis, border in enumerate(self.border):
                x = x.narrow(axis + 2, border, x.size(axis + 2) - 2 * border)
        x = self.act(self.norm(x))
        if self.same:
            x = pad_end(x, skip)
        else:
            skip = centre_crop(skip, x)
        return torch.cat([skip, x], dim=1)


class DecoderLevel(nn.Module):
    """Upsampling to a level and its convolutions."""

    def __init__(self, up: Up, convs: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.convs = convs

    def forward(self, coarse: Tensor, skips: list[Tensor]) -> Tensor:
        """Upsample, join the last of `skips`, convolve. The list loses it, which frees its memory meanwhile."""
        return self.convs(self.up(coarse, skips.pop()))


def centre_crop(image: Tensor, like: Tensor) -> Tensor:
    """Crop `(B, C, *spatial)` to the spatial size of `like`, the same on both sides."""
    for axis in range(2, image.dim()):
        size = like.size(axis)
        if image.size(axis) != size:
            image = image.narrow(axis, (image.size(axis) - size) // 2, size)
    return image


def pad_end(image: Tensor, like: Tensor) -> Tensor:
    """Pad `(B, C, *spatial)` with zeros at the far ends to the spatial size of `like`."""
    missing: list[int] = []
    for axis in range(image.dim() - 1, 1, -1):
        missing += [0, like.size(axis) - image.size(axis)]
    if torch.jit.is_scripting():
        needed = max(missing) > 0
    else:
        # an export leaves sizes open as symbols, which a comparison would fix and a padding of zero does not
        needed = any(isinstance(number, torch.SymInt) for number in missing) or max(missing) > 0
    if needed:
        image = F.pad(image, missing)
    return image


def initialise(network: nn.Module) -> None:
    """Draw weights from N(0, sqrt(2 / N)), with N incoming connections of one neuron; biases are zero.

    Ronneberger et al. 2015, section 3, after He et al. 2015. A pixel after a transposed convolution receives
    `prod(kernel / stride)` pixels of every input channel: with kernel = stride, one.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            incoming = module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            incoming = module.in_channels * math.prod(module.kernel_size) // math.prod(module.stride)
        else:
            continue
        nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
