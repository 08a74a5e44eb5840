"""The parts of a U-Net: convolution units, plain and residual blocks, the ways down and up.

Every part is TorchScript-able and keeps the memory format of its input. Convolutions that a normalisation follows
have no bias: its shift takes that place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.networks.layers import get_act_layer, get_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from medunet.errors import ConfigError

from .arguments import PerAxis, choose

NORMS = ("batch", "instance", "group")
ACTIVATIONS = ("relu", "leakyrelu", "prelu", "elu", "selu", "celu", "gelu", "relu6", "swish", "mish")
"""MONAI's names of the activations that act on every value alone (softmax and GLU mix channels) and can be scripted."""

INPLACE_ACTIVATIONS = ("relu", "leakyrelu", "elu", "selu", "celu", "relu6")
"""These overwrite the output of the layer before, which no gradient needs: a third less memory in training."""

NORM_DEFAULTS: dict[str, dict[str, Any]] = {"batch": {}, "instance": {"affine": True}, "group": {"num_groups": 8}}
"""Instance norm with scale and shift as in nnU-Net; 8 groups divide all the channel counts in use (multiples of 8)."""

Option = str | Sequence[Any]
"""A layer's name, or (name, {keyword: value}); JSON gives the latter as a list."""


def parse_option(what: str, option: Option, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Split a layer's name and keywords.

    Example:
        >>> parse_option("norm", ["group", {"num_groups": 4}], NORMS)
        ('group', {'num_groups': 4})
    """
    name, kwargs = option, {}
    if not isinstance(option, str):
        pair = list(option) if isinstance(option, Sequence) else []
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
            raise ConfigError(
                f"{what} is neither a name nor a name with keywords",
                received=repr(option),
                expected='"name" or ["name", {"keyword": value}]',
                remedy=f"write {what} in one of these forms",
            )
        name, kwargs = pair[0], dict(pair[1])
    name = str(name).lower()
    choose(what, name, names)
    return name, kwargs


@dataclass(frozen=True)
class Style:
    """What all convolutions of a network have in common; it builds them.

    Attributes:
        spatial_dims: 2 or 3.
        same: whether convolutions pad with zeros to keep the size.
        norm: None, or name and keywords of the normalisation.
        act: name and keywords of the activation.
    """

    spatial_dims: int
    same: bool
    norm: tuple[str, dict[str, Any]] | None
    act: tuple[str, dict[str, Any]] = field(default=("relu", {}))

    def conv(
        self, in_channels: int, out_channels: int, kernel: PerAxis, *, stride: PerAxis | None = None, bias: bool = True
    ) -> nn.Module:
        """Convolution; padded only where it has no stride, since strided ones have kernel = stride."""
        layer = nn.Conv2d if self.spatial_dims == 2 else nn.Conv3d
        padding = tuple(k // 2 for k in kernel) if self.same and stride is None else (0,) * self.spatial_dims
        # mypy: torch types these arguments as tuples of exactly two or three integers.
        return layer(in_channels, out_channels, kernel, stride or 1, padding, bias=bias)  # type: ignore[arg-type]

    def up_conv(self, in_channels: int, out_channels: int, stride: PerAxis, *, bias: bool = True) -> nn.Module:
        """Transposed convolution with kernel = stride: every coarse pixel becomes `stride` fine ones."""
        layer = nn.ConvTranspose2d if self.spatial_dims == 2 else nn.ConvTranspose3d
        return layer(in_channels, out_channels, stride, stride, bias=bias)  # type: ignore[arg-type]  # as in conv

    def normalisation(self, channels: int) -> nn.Module:
        """Normalisation of `channels`, or the identity.

        Raises:
            ConfigError: for keywords that the layer does not take, such as groups that do not divide the channels.
        """
        if self.norm is None:
            return nn.Identity()
        name, kwargs = self.norm
        try:
            layer: nn.Module = get_norm_layer((name, {**NORM_DEFAULTS[name], **kwargs}), self.spatial_dims, channels)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"norm cannot be built for {channels} channels ({error})",
                received=repr(self.norm),
                remedy='change the keywords of norm or the channels, e.g. ["group", {"num_groups": 4}]',
            ) from error
        return layer

    def activation(self) -> nn.Module:
        """One activation.

        Raises:
            ConfigError: for keywords that it does not take.
        """
        name, kwargs = self.act
        defaults = {"inplace": True} if name in INPLACE_ACTIVATIONS else {}
        try:
            layer: nn.Module = get_act_layer((name, {**defaults, **kwargs}))
        except TypeError as error:
            raise ConfigError(f"act cannot be built ({error})", received=repr(self.act)) from error
        return layer


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
        """Apply the three."""
        return self.act(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """Convolution units with a shortcut around all of them, activated after the sum (He et al. 2016, fig. 2).

    The shortcut is the identity, or a 1x1 convolution where the number of channels changes; a valid block crops it.
    """

    def __init__(self, style: Style, channels: Sequence[int], *, kernel: PerAxis) -> None:
        super().__init__()
        last = len(channels) - 2
        self.units = nn.Sequential(
            *(
                ConvUnit(style, channels[i], channels[i + 1], kernel=kernel, activate=i < last)
                for i in range(len(channels) - 1)
            )
        )
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
    """Convolutions of one level: `channels` is the way through it, input first."""
    if residual:
        return ResidualBlock(style, channels, kernel=kernel)
    pairs = itertools.pairwise(channels)
    return nn.Sequential(*(ConvUnit(style, before, after, kernel=kernel) for before, after in pairs))


class EncoderLevel(nn.Module):
    """The way down to a level and its convolutions: `(B, C, *spatial) -> (B, C', *(spatial / stride))`."""

    def __init__(self, down: nn.Module, convs: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.down = down
        self.convs = convs
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Go down, convolve, drop out (in training)."""
        return self.dropout(self.convs(self.down(x)))


class Up(nn.Module):
    """Upsampling to the next finer level and concatenation with its skip connection, skip first.

    Padded networks pad the upsampled map with zeros at its far end where an odd size was halved:

    ```
    skip        | 0 | 1 | 2 | 3 | 4 |        pixel 4 has no partner, so pooling left it out;
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
        # What linear interpolation at the border takes from outside the map, per side: see UNetShapes.
        self.border = [0 if style.same or not linear else s // 2 for s in stride]
        bias = not norm or style.norm is None
        self.conv: nn.Module
        if not linear:
            self.conv = style.up_conv(in_channels, out_channels, stride, bias=bias)
        elif in_channels != out_channels:
            # A 1x1 convolution and an interpolation commute; before it, there are fewer pixels to convolve.
            self.conv = style.conv(in_channels, out_channels, (1,) * style.spatial_dims, bias=bias)
        else:
            self.conv = nn.Identity()
        self.norm = style.normalisation(out_channels) if norm else nn.Identity()
        self.act = style.activation() if act else nn.Identity()

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """`(B, in_channels, *coarse)` and `(B, S, *fine)` to `(B, S + out_channels, *fine')`."""
        x = self.conv(coarse)
        if self.linear:
            # Half-pixel centres are the same everywhere in the image; align_corners=True would tie every pixel to the
            # tile's size, and tiles would not agree.
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
    """The way up to a level and its convolutions."""

    def __init__(self, up: Up, convs: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.convs = convs

    def forward(self, coarse: Tensor, skips: list[Tensor]) -> Tensor:
        """Go up, join the last of `skips`, convolve.

        The skip is taken off the list, so that nothing holds its memory while the convolutions run.
        """
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
        # sizes that an export leaves open are symbols: a comparison would fix them, a zero of padding does not
        needed = any(isinstance(number, torch.SymInt) for number in missing) or max(missing) > 0
    if needed:
        image = F.pad(image, missing)
    return image


def initialise(network: nn.Module) -> None:
    """Draw weights from N(0, sqrt(2 / N)), N the incoming connections of one neuron; biases are zero.

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
