"""Weights of public U-Nets give the same output in `UNet`. The public networks are reimplemented here."""

from itertools import chain, pairwise

import pytest
import torch
from public_unets import fill, load_public
from torch import nn

from medunet.networks import presets

WIDTHS = (4, 8, 16, 32, 64)
UPS = range(1, 5)

# names of the blocks in the order of computation: encoder, coarsest level, up-convolution and block per level, head
NAMES: dict[str, list[str]] = {
    "milesial": [
        *("inc.double_conv", *(f"down{i}.maxpool_conv.1.double_conv" for i in UPS)),
        *(*chain.from_iterable((f"up{i}.up", f"up{i}.conv.double_conv") for i in UPS), "outc.conv"),
    ],
    "mateuszbuda": [
        *(*(f"encoder{i}" for i in UPS), "bottleneck"),
        *(*chain.from_iterable((f"upconv{i}", f"decoder{i}") for i in reversed(UPS)), "conv"),
    ],
    "aladdinpersson": [
        *(*(f"downs.{i}.conv" for i in range(4)), "bottleneck.conv"),
        *(*chain.from_iterable((f"ups.{i}", f"ups.{i + 1}.conv") for i in range(0, 8, 2)), "final_conv"),
    ],
}


def normed(*convs: nn.Module) -> nn.Sequential:
    """Return convolutions, each with a batch norm that has seen data and a ReLU."""
    layers = chain.from_iterable((conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()) for conv in convs)
    block = nn.Sequential(*layers).eval()
    for conv in convs:
        nn.init.normal_(conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5)
    for norm in block[1::3]:
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    return block


class Public:
    """A public network: odd sizes are padded, `skip_first` is the order of the concatenation."""

    def __init__(
        self,
        source: str = "milesial",
        *,
        bias: bool = False,
        widths: tuple[int, ...] = (3, *WIDTHS),
        classes: int = 2,
        head: int = 1,
        norm_up: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.source, self.sigmoid, self.skip_first = source, source == "mateuszbuda" or norm_up, source != "mateuszbuda"

        def double(before: int, after: int) -> nn.Sequential:
            pairs = ((before, after), (after, after))
            return normed(*(nn.Conv2d(a, b, 3, padding=1, bias=bias) for a, b in pairs))

        self.down = [double(before, after) for before, after in pairwise(widths)]
        ups = [nn.ConvTranspose2d(wide, wide // 2, 2, 2) for wide in widths[:1:-1]]
        self.up: list[nn.Module] = [normed(up) if norm_up else up for up in ups]
        self.join = [double(wide, wide // 2) for wide in widths[:1:-1]]
        self.head = nn.Conv2d(widths[1], classes, head, padding=head // 2)

    def blocks(self) -> list[nn.Module]:
        return [*self.down, *chain.from_iterable(zip(self.up, self.join, strict=True)), self.head]

    def state_dict(self) -> dict[str, torch.Tensor]:
        named = list(zip(NAMES[self.source], self.blocks(), strict=True))
        named.sort(key=lambda pair: not pair[0].startswith("ups"))  # aladdinpersson registers them first
        return {f"{name}.{key}": value for name, block in named for key, value in block.state_dict().items()}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks():
            block.double()
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            skips.append(block(nn.functional.max_pool2d(skips[-1], 2) if level else x.double()))
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            skip, x = skips.pop(), up(x)
            rows, columns = (skip.shape[axis] - x.shape[axis] for axis in (2, 3))
            x = nn.functional.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            x = join(torch.cat([skip, x] if self.skip_first else [x, skip], dim=1))
        return self.head(x).sigmoid() if self.sigmoid else self.head(x)


def assert_same_function(public: Public, network: nn.Module, *size: int) -> None:
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = public(image), network.double()(image.double())
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.std()), rtol=0)


@pytest.mark.parametrize(
    ("source", "bias", "size"),
    [("milesial", True, (35, 50)), ("mateuszbuda", False, (32, 48)), ("aladdinpersson", False, (32, 48))],
)
def test_public_weights_give_the_same_output(source: str, bias: bool, size: tuple[int, ...]) -> None:
    public = Public(source, bias=bias)
    assert_same_function(public, load_public(public.state_dict(), source), 3, *size)


def test_newer_milesial_checkpoints_have_no_biases() -> None:
    public = Public()
    weights = {f"module.{name}": value for name, value in public.state_dict().items()}
    assert_same_function(public, load_public({**weights, "mask_values": [0, 255]}, "milesial"), 3, 32, 48)


def test_the_compact_preset_gives_the_output_of_its_source() -> None:
    public = Public(bias=True, widths=(1, 8, 16, 32, 64, 128), classes=1, head=3, norm_up=True)
    layers = chain.from_iterable(block if isinstance(block, nn.Sequential) else [block] for block in public.blocks())
    network = presets.unet_compact_bn().eval()
    fill(network, [dict(layer.state_dict()) for layer in layers if layer.state_dict()], skip_first=True)
    assert_same_function(public, network, 1, 32, 48)
