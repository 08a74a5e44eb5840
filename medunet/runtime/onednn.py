"""Convolutions of single small images on CPUs, by the library that computes all others."""

from __future__ import annotations

import types

import torch
from torch import nn

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def use_onednn(network: nn.Module) -> nn.Module:
    """Let the convolutions of a float32 network on a CPU be computed by oneDNN, whatever their size.

    PyTorch takes a kernel of its own where batch x channels x the first two axes are at most 20,480 and the batch is
    one (``use_mkldnn`` in aten/src/ATen/native/Convolution.cpp): it unfolds the image into a matrix of 27 times its
    size, and took 1.6 to 12 times as long for nine 3D layers (one core, AVX512). Pointwise convolutions, and
    those of one channel, for which that kernel was quicker where they are large, stay as they are.

    Args:
        network: is changed; float32, in evaluation mode, without gradients.

    Returns:
        The network.
    """
    if not torch.backends.mkldnn.is_available():
        return network
    for module in network.modules():
        if isinstance(module, _CONVOLUTIONS) and _fits(module):
            module._conv_forward = types.MethodType(_by_onednn, module)  # type: ignore[method-assign]
    return network


def _fits(convolution: nn.Conv2d | nn.Conv3d) -> bool:
    return (
        convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and convolution.in_channels > 1
        and max(convolution.kernel_size) > 1
    )


def _by_onednn(
    self: nn.Conv2d | nn.Conv3d, image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """In the place of `_conv_forward`, which `forward` calls with the image, the weights and the bias."""
    if image.device.type != "cpu" or image.dtype != torch.float32 or image.ndim != weight.ndim:
        return type(self)._conv_forward(self, image, weight, bias)  # type: ignore[arg-type]
    found: torch.Tensor = torch.ops.aten.mkldnn_convolution(
        image, weight, bias, list(self.padding), list(self.stride), list(self.dilation), self.groups
    )
    return found
