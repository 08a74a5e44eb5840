"""Parts of a U-Net. Each can be scripted and keeps the memory format of its input."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medunet.errors import ConfigError

from .arguments import PerAxis

# instance norm has scale and shift as in nnU-Net; 8 groups divide all usual numbers of channels
NORMS: dict[str, dict[str, Any]] = {"batch": {}, "instance": {"affine": True}, "group": {"num_groups": 8}}

# by MONAI's name; each acts on every value alone (softmax and GLU mix channels) and can be scripted
ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    **{"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "prelu": nn.PReLU, "elu": nn.ELU, "selu": nn.SELU},
    **{"celu": nn.CELU, "gelu": nn.GELU, "relu6": nn.ReLU6, "swish": nn.SiLU, "mish": nn.Mish},
}
# these overwrite their input, which no gradient needs: a third less memory in training
INPLACE_ACTIVATIONS = ("relu", "leakyrelu", "elu", "selu", "celu", "relu6")


@dataclass(frozen=True)
class Style:
    """Options that all levels of a network share, and the layers that follow from them."""

    spatial_dims: int
    same: bool  # convolutions pad with zeros to keep the size
    norm: tuple[str, dict[str, Any]] | None  # name and keywords
    act: tuple[str, dict[str, Any]]
    residual: bool = False
    linear: bool = False  # interpolate upwards, instead of a transposed convolution
    norm_after_up: bool = False
    act_after_up: bool = False

    def layer(self, kind: str) -> Any:
        """Return a class of torch such as `Conv` for the number of spatial dimensions."""
        return getattr(nn, f"{kind}{self.spatial_dims}d")

    def conv(
        self, before: int, after: int, kernel: PerAxis, *, stride: PerAxis | None = None, bias: bool = True
    ) -> nn.Module:
        """Return a convolution; if its stride equals its kernel, it has no padding."""
        padding = tuple(k // 2 for k in kernel) if self.same and stride != kernel else 0
        conv: nn.Module = self.layer("Conv")(before, after, kernel, stride or 1, padding, bias=bias)
        return conv

    def normalisation(self, channels: int) -> nn.Module:
        """Return the normalisation of `channels`, or the identity."""
        if self.norm is None:
            return nn.Identity()
        name, kwargs = self.norm[0], {**NORMS[self.norm[0]], **self.norm[1]}
        try:
            if name == "group":
                return nn.GroupNorm(num_channels=channels, **kwargs)
            norm: nn.Module = self.layer("BatchNorm" if name == "batch" else "InstanceNorm")(channels, **kwargs)
            return norm
        except (TypeError, ValueError) as error:
            cause = f"norm cannot be built for {channels} channels ({error})"
            raise ConfigError(cause, received=repr(self.norm)) from error

    def activation(self) -> nn.Module:
        """Return an activation."""
        name, kwargs = self.act
        defaults = {"inplace": True} if name in INPLACE_ACTIVATIONS else {}
        try:
            return ACTIVATIONS[name](**{**defaults, **kwargs})
        except TypeError as error:
            raise ConfigError(f"act cannot be built ({error})", received=repr(self.act)) from error

    def unit(
        self, before: int, after: int, kernel: PerAxis, *, stride: PerAxis | None = None, act: bool = True
    ) -> nn.Module:
        """Return convolution, normalisation and activation; a bias before a normalisation would have no effect."""
        conv = self.conv(before, after, kernel, stride=stride, bias=self.norm is None)
        return named(conv=conv, norm=self.normalisation(after), act=self.activation() if act else nn.Identity())

    def block(self, channels: Sequence[int], kernel: PerAxis, stride: PerAxis | None = None) -> nn.Module:
        """Return the convolutions of one level; `channels` lists those of its input and of every convolution."""
        if self.residual:
            return ResidualBlock(self, channels, kernel, stride)
        first: list[PerAxis | None] = [stride, *[None] * (len(channels) - 2)]
        pairs = zip(pairwise(channels), first, strict=True)
        return nn.Sequential(*(self.unit(before, after, kernel, stride=step) for (before, after), step in pairs))

    def residual_blocks(
        self, before: int, after: int, count: int, kernel: PerAxis, stride: PerAxis | None, *, stem: bool
    ) -> nn.Module:
        """Return the blocks of two convolutions of one level, after a single convolution if `stem` is set."""
        layers = [self.unit(before, after, kernel)] if stem else []
        for index in range(count):
            width = before if index == 0 and not stem else after
            layers.append(ResidualBlock(self, (width, after, after), kernel, stride if index == 0 else None))
        return nn.Sequential(*layers)

    def up(self, before: int, after: int, stride: PerAxis) -> nn.Module:
        """Return the layers of an upsampling; a transposed convolution turns each coarse pixel into `stride` fine ones.

        A 1x1 convolution and a linear interpolation commute; convolving before interpolation processes fewer pixels.
        """
        conv: nn.Module = nn.Identity()
        bias = not self.norm_after_up or self.norm is None
        if not self.linear:
            conv = self.layer("ConvTranspose")(before, after, stride, stride, bias=bias)
        elif before != after:
            conv = self.conv(before, after, (1,) * self.spatial_dims, bias=bias)
        norm = self.normalisation(after) if self.norm_after_up else nn.Identity()
        return named(conv=conv, norm=norm, act=self.activation() if self.act_after_up else nn.Identity())


def named(**layers: nn.Module) -> nn.Sequential:
    """Return an `nn.Sequential` of named layers."""
    return nn.Sequential(OrderedDict(layers))


class ResidualBlock(nn.Module):
    """Convolution units with a shortcut around all of them, activated after the sum (He et al. 2016, fig. 2).

    The shortcut is the identity, or a 1x1 convolution if the number of channels changes; a valid block crops it. If the
    first convolution has a stride, the shortcut takes the mean of its pixels (He et al. 2019, "ResNet-D").
    """

    def __init__(self, style: Style, channels: Sequence[int], kernel: PerAxis, stride: PerAxis | None = None) -> None:
        super().__init__()
        pairs, last = enumerate(pairwise(channels)), len(channels) - 2
        self.units = nn.Sequential(
            *(style.unit(a, b, kernel, stride=None if i else stride, act=i < last) for i, (a, b) in pairs)
        )
        self.pool: nn.Module = nn.Identity() if stride is None else style.layer("AvgPool")(stride)
        self.shortcut: nn.Module = nn.Identity()
        if channels[0] != channels[-1]:
            self.shortcut = style.unit(channels[0], channels[-1], (1,) * style.spatial_dims, act=False)
        self.act = style.activation()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the units and add the shortcut."""
        y = self.units(x)
        if not isinstance(self.pool, nn.Identity):  # on a CPU, PyTorch averages volumes in float32 only
            x = self.pool(x.float()).to(x.dtype)
        return self.act(y + self.shortcut(centre_crop(x, y)))


class DecoderLevel(nn.Module):
    """Upsampling to the next finer level, concatenation with its skip connection (skip first), convolutions.

    A padded network pads the upsampled map with zeros at its far end if an odd size was halved, so near ends stay
    aligned wherever the image ends. A valid network crops the skip connection about its centre.
    """

    def __init__(self, style: Style, stride: PerAxis, up: nn.Module, convs: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.convs = convs
        self.same = style.same
        self.linear = style.linear
        self.scale = [float(s) for s in stride]
        self.mode = "bilinear" if style.spatial_dims == 2 else "trilinear"
        # linear interpolation at the border would take these pixels per side from outside the map, see UNetShapes
        self.border = [0 if style.same or not style.linear else s // 2 for s in stride]

    def forward(self, coarse: Tensor, skips: list[Tensor]) -> Tensor:
        """Upsample, concatenate the last of `skips`, and convolve. It is popped from the list to free its memory."""
        return self.convs(self._joined(coarse, skips.pop()))

    def _joined(self, coarse: Tensor, skip: Tensor) -> Tensor:
        x = self.up.conv(coarse)  # type: ignore[operator]
        if self.linear:
            # half-pixel centres do not depend on the tile's size, as align_corners=True does, so tiles agree
            x = F.interpolate(x, scale_factor=self.scale, mode=self.mode, align_corners=False)
            for axis, border in enumerate(self.border):
                x = x.narrow(axis + 2, border, x.size(axis + 2) - 2 * border)
        x = self.up.act(self.up.norm(x))  # type: ignore[operator]
        if self.same:
            x = pad_end(x, skip)
        else:
            skip = centre_crop(skip, x)
        return torch.cat([skip, x], dim=1)


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
    return F.pad(image, missing) if needed else image


def initialise(network: nn.Module) -> None:
    """Draw weights from N(0, sqrt(2 / N)), with N incoming connections of one neuron; biases are zero.

    Ronneberger et al. 2015, section 3. A pixel after a transposed convolution receives `prod(kernel / stride)` pixels
    of every input channel: with kernel = stride, one.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            incoming = module.in_channels
            incoming *= 1 if module.transposed else math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
