"""Weights of public U-Nets give the same output in `UNet`. The public networks are written anew here."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from medunet.errors import ConfigError, DataError
from medunet.networks import presets
from medunet.runtime import load_public, save_checkpoint
from medunet.runtime.public import fill

WIDTHS = (4, 8, 16, 32, 64)

ROUNDING = 1e-6
"""Largest difference in standard deviations of the output."""


def double(before: int, after: int, *, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()),
        *(nn.Conv2d(after, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()),
    )


def pad_like(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    rows, columns = (like.shape[axis] - image.shape[axis] for axis in (2, 3))
    return nn.functional.pad(image, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


class Part(nn.Module):
    """A module with submodules by name."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Milesial(nn.Module):
    """Biases before the batch norms; the skip connection comes first; odd sizes are padded."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.inc = Part(double_conv=double(3, WIDTHS[0], bias=bias))
        for level, (before, after) in enumerate(itertools.pairwise(WIDTHS), start=1):
            block = Part(double_conv=double(before, after, bias=bias))
            self.add_module(f"down{level}", Part(maxpool_conv=nn.Sequential(nn.MaxPool2d(2), block)))
        for level, wide in enumerate(reversed(WIDTHS[1:]), start=1):
            block = Part(double_conv=double(wide, wide // 2, bias=bias))
            self.add_module(f"up{level}", Part(up=nn.ConvTranspose2d(wide, wide // 2, 2, 2), conv=block))
        self.outc = Part(conv=nn.Conv2d(WIDTHS[0], 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.inc.double_conv(x)]
        for level in range(1, 5):
            pool, block = getattr(self, f"down{level}").maxpool_conv
            skips.append(block.double_conv(pool(skips[-1])))
        x = skips.pop()
        for level in range(1, 5):
            part = getattr(self, f"up{level}")
            skip = skips.pop()
            x = part.conv.double_conv(torch.cat([skip, pad_like(part.up(x), skip)], dim=1))
        return self.outc.conv(x)


class Mateuszbuda(nn.Module):
    """No biases before the batch norms; the upsampled map comes first; one probability."""

    def __init__(self) -> None:
        super().__init__()
        for level, (before, after) in enumerate(zip((3, *WIDTHS), WIDTHS[:4], strict=False), start=1):
            self.add_module(f"encoder{level}", double(before, after, bias=False))
        self.bottleneck = double(WIDTHS[3], WIDTHS[4], bias=False)
        for level in (4, 3, 2, 1):
            wide = WIDTHS[level]
            self.add_module(f"upconv{level}", nn.ConvTranspose2d(wide, wide // 2, 2, 2))
            self.add_module(f"decoder{level}", double(wide, wide // 2, bias=False))
        self.conv = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in (1, 2, 3, 4):
            skips.append(getattr(self, f"encoder{level}")(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for level in (4, 3, 2, 1):
            up = getattr(self, f"upconv{level}")(x)
            x = getattr(self, f"decoder{level}")(torch.cat([up, skips.pop()], dim=1))
        return self.conv(x).sigmoid()


class Aladdinpersson(nn.Module):
    """The way up is registered before the way down."""

    def __init__(self) -> None:
        super().__init__()
        ups: list[nn.Module] = []
        for wide in reversed(WIDTHS[1:]):
            ups += [nn.ConvTranspose2d(wide, wide // 2, 2, 2), Part(conv=double(wide, wide // 2, bias=False))]
        pairs = zip((3, *WIDTHS), WIDTHS[:4], strict=False)
        self.ups = nn.ModuleList(ups)
        self.downs = nn.ModuleList(Part(conv=double(before, after, bias=False)) for before, after in pairs)
        self.bottleneck = Part(conv=double(WIDTHS[3], WIDTHS[4], bias=False))
        self.final_conv = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.downs:
            skips.append(down.conv(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck.conv(x)
        for up, block in zip(self.ups[::2], self.ups[1::2], strict=True):
            x = block.conv(torch.cat([skips.pop(), up(x)], dim=1))
        return self.final_conv(x)


def trained(network: nn.Module) -> nn.Module:
    """With batch norm that has seen data, in evaluation mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
    return network.eval()


def assert_same_function(public: nn.Module, weights: object, source: str, *size: int) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = public.double()(image.double()), load_public(weights, source).double()(image.double())
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=ROUNDING * float(expected.std()), rtol=0)


CASES = {
    "milesial": (Milesial, (35, 50)),
    "mateuszbuda": (Mateuszbuda, (32, 48)),
    "aladdinpersson": (Aladdinpersson, (32, 48)),
}


@pytest.mark.parametrize("source", CASES)
def test_public_weights_give_the_same_output(source: str) -> None:
    make, size = CASES[source]
    public = trained(make())
    assert_same_function(public, public.state_dict(), source, *size)


def test_a_newer_milesial_without_biases_and_with_other_entries_is_read_from_a_file(tmp_path: Path) -> None:
    public = trained(Milesial(bias=False))
    weights = {f"module.{name}": value for name, value in public.state_dict().items()}
    save_checkpoint({**weights, "mask_values": [0, 255]}, tmp_path / "unet.pth")
    assert_same_function(public, tmp_path / "unet.pth", "milesial", 32, 48)


class Compact(nn.Module):
    """The source of `unet_compact_bn`: a bias, a batch norm and a ReLU in every convolution and up-convolution."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 16, 32, 64, 128)
        self.down = nn.ModuleList(double(before, after, bias=True) for before, after in itertools.pairwise(widths))
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for wide in (128, 64, 32, 16):
            half = wide // 2
            self.up.append(nn.Sequential(nn.ConvTranspose2d(wide, half, 2, 2), nn.BatchNorm2d(half), nn.ReLU()))
            self.join.append(double(wide, half, bias=True))
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], dim=1))
        return self.last(x).sigmoid()

    def layers(self) -> list[dict[str, torch.Tensor]]:
        blocks = [*self.down, *itertools.chain.from_iterable(zip(self.up, self.join, strict=True))]
        parts = [layer for block in blocks for layer in block if not isinstance(layer, nn.ReLU)]
        return [dict(layer.state_dict()) for layer in (*parts, self.last)]


def test_the_compact_preset_computes_what_its_source_computes() -> None:
    public = trained(Compact())
    assert sum(p.numel() for p in public.parameters()) == 487_449
    network, image = presets.unet_compact_bn().eval(), torch.randn(2, 1, 32, 48)
    fill(network, public.layers(), skip_first=True)
    with torch.inference_mode():
        expected, found = public.double()(image.double()), network.double()(image.double())
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)


def test_the_order_of_the_concatenation_matters() -> None:
    public, image = trained(Mateuszbuda()), torch.randn(1, 3, 32, 32)
    found = load_public(public.state_dict(), "mateuszbuda")
    with torch.no_grad():
        found.decoder[0].convs[0].conv.weight.copy_(public.decoder4[0].weight)
        assert (found(image) - public(image)).abs().max() > 1e3 * ROUNDING


def test_other_weights_and_sources_are_typed_errors(tmp_path: Path) -> None:
    state = trained(Milesial()).state_dict()
    with pytest.raises(ConfigError, match=r"unknown source of weights .*milesial"):
        load_public(state, "zhixuhao")
    bilinear = {name: value for name, value in state.items() if ".up." not in name}
    for wrong in ({}, bilinear, {**state, "inc.more.weight": torch.ones(3)}):
        with pytest.raises(DataError, match="not those of a U-Net of milesial"):
            load_public(wrong, "milesial")
    with pytest.raises(DataError, match="no checkpoint"):
        load_public(tmp_path / "none.pth", "milesial")
