"""Convolutions of a trained network made faster: batch norm folded in, small images computed by oneDNN."""

import copy
import types

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode whose batch norms are part of the convolutions before them.

    Modules with the attributes `conv` and `norm`, computed in this order, are folded; linear interpolation between the
    two (`DecoderLevel`) keeps constants, so it changes nothing. All other modules stay as they are.

    Examples:
        >>> from medunet.networks import UNet
        >>> folded = fold_batch_norm(UNet(2, 1, 2, channels=(4, 8), norm="batch"))
        >>> any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        False
    """
    folded = copy.deepcopy(network).eval()
    for module in list(folded.modules()):
        conv, norm = getattr(module, "conv", None), getattr(module, "norm", None)
        if isinstance(norm, _BatchNorm) and isinstance(conv, _CONVOLUTIONS) and norm.running_mean is not None:
            dtype, is_transposed = norm.running_mean.dtype, isinstance(conv, _TRANSPOSED)
            module.conv = fuse_conv_bn_eval(conv.double(), norm.double(), transpose=is_transposed).to(dtype)
            module.norm = nn.Identity()
    return folded


def use_onednn(network: nn.Module) -> None:
    """Let oneDNN compute the convolutions of a float32 network on a CPU, whatever their size. Changes the network.

    PyTorch uses its own kernel if batch x channels x the first two axes are at most 20,480 and the batch is one
    (``use_mkldnn`` in aten/src/ATen/native/Convolution.cpp): it unfolds the image into a matrix of 27 times its size,
    and took 1.6 to 12 times as long for nine 3D layers (one core, AVX512). Pointwise convolutions, and those of one
    channel, for which that kernel is faster on large images, stay as they are.
    """
    for module in network.modules() if torch.backends.mkldnn.is_available() else ():
        if (
            isinstance(module, nn.Conv2d | nn.Conv3d)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and module.in_channels > 1
            and max(module.kernel_size) > 1
        ):
            module._conv_forward = types.MethodType(_by_onednn, module)  # type: ignore[method-assign]


def _by_onednn(
    self: nn.Conv2d | nn.Conv3d, image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Convolve by oneDNN. This replaces `_conv_forward`, which `forward` calls with image, weights and bias."""
    if image.device.type != "cpu" or image.dtype != torch.float32 or image.ndim != weight.ndim:
        return type(self)._conv_forward(self, image, weight, bias)  # type: ignore[arg-type]
    output: torch.Tensor = torch.ops.aten.mkldnn_convolution(
        image, weight, bias, list(self.padding), list(self.stride), list(self.dilation), self.groups
    )
    return output
