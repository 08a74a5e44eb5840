from __future__ import annotations

import pytest
import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks import UNet, presets


def count(net):
    return sum(p.numel() for p in net.parameters())


def on_meta(name, **options):
    """Shapes without arithmetic: a preset costs neither memory nor time there."""
    with torch.device("meta"):
        return presets.build(name, **options)


def conv(before, after, *, kernel=9, bias=True):
    return before * after * kernel + after * bias


def paper_parameters(in_channels, out_channels, *, batch_norm=False):
    """Layer by layer through figure 1; a batch norm's scale and shift stand for the convolution's bias."""
    extra = 1 if batch_norm else 0
    down = [(in_channels, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    bottom = [(512, 1024), (1024, 1024)]
    up = [(1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64)]
    threes = sum(conv(a, b) + extra * b for a, b in [*down, *bottom, *up])
    ups = sum(conv(a, a // 2, kernel=4) for a in (1024, 512, 256, 128))
    return threes + ups + conv(64, out_channels, kernel=1)


def test_unet_2015_has_the_papers_23_convolutions_sizes_and_parameters():
    net = on_meta("unet_2015")
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(layers) == 23
    assert [m.kernel_size for m in layers].count((3, 3)) == 18
    assert [m.kernel_size for m in layers].count((2, 2)) == 4
    assert [m.kernel_size for m in layers].count((1, 1)) == 1
    assert net(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)
    # 31,030,658 is also what public copies of figure 1 count (e.g. jakeret/tf_unet with 5 layers of 64 features).
    assert count(net) == paper_parameters(1, 2) == 31_030_658
    assert not net.tileable_reason.startswith("the output is resized")
    assert net.tileable


def test_unet_2015_resized_is_the_same_network_at_the_size_of_the_input():
    net = on_meta("unet_2015_resized")
    assert net(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 572, 572)
    assert net.state_dict().keys() == on_meta("unet_2015").state_dict().keys()
    assert count(net) == 31_030_658
    assert not net.tileable


def test_unet_2015_same_keeps_the_size_and_gives_one_probability():
    net = on_meta("unet_2015_same")
    assert net(torch.empty(1, 1, 511, 514, device="meta")).shape == (1, 1, 511, 514)
    assert net.out_activation == "sigmoid"
    # github.com/zhixuhao/unet has a 3x3 convolution to 2 channels more: 31,031,685 for a one-channel image.
    assert count(net) == paper_parameters(1, 1) == 31_030_593
    assert count(net) - conv(64, 1, kernel=1) + conv(64, 2) + conv(2, 1, kernel=1) == 31_031_685


def test_unet_compact_bn_counts_and_normalises_after_the_up_convolutions():
    net = on_meta("unet_compact_bn")
    threes = [(1, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    threes += [(128, 64), (64, 64), (64, 32), (32, 32), (32, 16), (16, 16), (16, 8), (8, 8)]
    by_hand = sum(conv(a, b, bias=False) + 2 * b for a, b in threes)
    by_hand += sum(conv(a, a // 2, kernel=4, bias=False) + 2 * (a // 2) for a in (128, 64, 32, 16))
    by_hand += conv(8, 1)
    assert count(net) == by_hand == 486_593
    biases = sum(b for _, b in threes) + sum(a // 2 for a in (128, 64, 32, 16))
    assert count(net) + biases == 487_449  # as the public code counts: the batch norms cancel these biases
    assert net.head.kernel_size == (3, 3)
    assert all(isinstance(level.up.norm, nn.BatchNorm2d) for level in net.decoder)
    assert all(isinstance(level.up.act, nn.ReLU) for level in net.decoder)
    assert net(torch.empty(1, 1, 33, 35, device="meta")).shape == (1, 1, 33, 35)


def test_unet_padded_bn_counts_as_its_public_source():
    # Widely quoted for github.com/milesial/Pytorch-UNet with three channels in and one out: 31,037,633.
    assert count(on_meta("unet_padded_bn", out_channels=1)) == paper_parameters(3, 1, batch_norm=True) == 31_037_633
    net = on_meta("unet_padded_bn")
    assert count(net) == paper_parameters(3, 2, batch_norm=True) == 31_037_698
    assert net(torch.empty(1, 3, 511, 514, device="meta")).shape == (1, 2, 511, 514)


def test_unet_padded_bn_counts_as_its_public_source_with_bilinear_upsampling():
    net = on_meta("unet_padded_bn", upsample="linear", out_channels=1)
    # (into the block, its middle, out of it)
    blocks = [(3, 64, 64), (64, 128, 128), (128, 256, 256), (256, 512, 512), (512, 512, 512)]
    blocks += [(1024, 512, 256), (512, 256, 128), (256, 128, 64), (128, 64, 64)]
    with_bias = sum(conv(a, b) + conv(b, c) + 2 * (b + c) for a, b, c in blocks) + conv(64, 1, kernel=1)
    # Quoted as 17,267,393 for the source's first form, whose convolutions had a bias in front of the batch norm.
    assert with_bias == 17_267_393
    assert count(net) == with_bias - sum(b + c for _, b, c in blocks) == 17_262_977
    assert net(torch.empty(1, 3, 511, 514, device="meta")).shape == (1, 1, 511, 514)


def test_unet3d_2016_has_the_papers_sizes_and_parameters():
    net = on_meta("unet3d_2016")
    assert net(torch.empty(1, 3, 132, 132, 116, device="meta")).shape == (1, 3, 44, 44, 28)
    threes = [(3, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    threes += [(256 + 512, 256), (256, 256), (128 + 256, 128), (128, 128), (64 + 128, 64), (64, 64)]
    weights = sum(conv(a, b, kernel=27, bias=False) for a, b in threes)
    shifts = sum(b for _, b in threes)
    ups = [512, 256, 128]
    up_weights = sum(conv(a, a, kernel=8, bias=False) for a in ups)
    head = conv(64, 3, kernel=1)
    assert weights + shifts + up_weights + head == 19_069_955  # as the paper counts
    assert (
        count(net) == 19_069_955 + shifts + sum(ups) == 19_073_187
    )  # with batch norm scales and up-convolution biases


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_takes_overrides_and_names_its_source(name):
    net = on_meta(name, in_channels=2, out_channels=5, channels=[8, 16, 32], norm="batch", out_activation=None)
    assert isinstance(net, UNet)
    size = net.shapes.input_for_output((8,) * net.shapes.spatial_dims)
    out = net(torch.empty(1, 2, *size, device="meta"))
    assert out.shape == (1, 5, *net.shapes.output_size(size))
    assert presets.PRESETS[name].__name__ == name
    assert "parameters" in presets.PRESETS[name].__doc__


def test_unknown_names_and_keywords_are_rejected():
    with pytest.raises(ConfigError, match=r"unet_2051.*unet_2015 \| unet_2015_resized"):
        presets.build("unet_2051")
    with pytest.raises(ConfigError, match=r"received chanels, expected spatial_dims.*channels"):
        presets.unet_2015(chanels=[1, 2])
