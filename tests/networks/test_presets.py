from typing import Any

import pytest
import torch
from torch import nn

from medunet.networks import UNet, presets


def on_meta(name: str, **options: Any) -> UNet:
    """Shapes without arithmetic: a preset costs neither memory nor time there."""
    with torch.device("meta"):
        return presets.PRESETS[name](**options)


@pytest.mark.parametrize(
    ("name", "options", "size", "output", "parameters"),
    [
        # also what public copies of figure 1 count, such as jakeret/tf_unet with 5 layers of 64 features
        ("unet_2015", {}, (1, 572, 572), (2, 388, 388), 31_030_658),
        ("unet_2015_resized", {}, (1, 572, 572), (2, 572, 572), 31_030_658),
        # zhixuhao/unet has 31,031,685, because of one more 3x3 convolution to 2 channels
        ("unet_2015_same", {}, (1, 511, 514), (1, 511, 514), 31_031_685 - (64 * 18 + 2) - 3 + 65),
        # the public code has 856 biases before batch norms
        ("unet_compact_bn", {}, (1, 33, 35), (1, 33, 35), 487_449 - 856),
        # as quoted for milesial/Pytorch-UNet with one class; its bilinear form had biases before the batch norms
        ("unet_padded_bn", {"out_channels": 1}, (3, 511, 514), (1, 511, 514), 31_037_633),
        ("unet_padded_bn", {"out_channels": 1, "upsample": "linear"}, (3, 65, 66), (1, 65, 66), 17_267_393 - 4_416),
        # 19,069,955 in the paper, without 2,336 scales of batch norms and 896 biases of up-convolutions
        ("unet3d_2016", {}, (3, 132, 132, 116), (3, 44, 44, 28), 19_069_955 + 2_336 + 896),
    ],
)
def test_presets_have_the_published_sizes_and_parameters(
    name: str, options: dict[str, Any], size: tuple[int, ...], output: tuple[int, ...], parameters: int
) -> None:
    network = on_meta(name, **options)
    assert network(torch.empty(1, *size, device="meta")).shape == (1, *output)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.tileable is (name != "unet_2015_resized")


def test_the_paper_has_23_convolutions() -> None:
    layers = [m for m in on_meta("unet_2015").modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    sizes = [m.kernel_size for m in layers]
    assert [sizes.count((k, k)) for k in (3, 2, 1)] == [18, 4, 1]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_accepts_overrides(name: str) -> None:
    net = on_meta(name, in_channels=2, out_channels=5, channels=[8, 16, 32], norm="batch", out_activation=None)
    size = net.shapes.input_for_output((8,) * net.shapes.spatial_dims)
    assert net(torch.empty(1, 2, *size, device="meta")).shape == (1, 5, *net.shapes.output_size(size))
    with pytest.raises(TypeError, match="chanels"):
        on_meta(name, chanels=[1, 2])
