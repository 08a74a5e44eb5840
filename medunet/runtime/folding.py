"""Batch norm in evaluation is one factor and one shift a channel, which the convolution before it can apply itself."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode whose batch norms are part of the convolutions before them.

    Modules with the attributes `conv` and `norm`, in this order of computation, are folded; linear interpolation
    between the two (`Up`) changes nothing, for it keeps constants. Others stay as they are.

    Args:
        network: is not changed.

    Example:
        >>> from medunet.networks import UNet
        >>> folded = fold_batch_norm(UNet(2, 1, 2, channels=(4, 8), norm="batch"))
        >>> any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        False
    """
    folded = copy.deepcopy(network).eval()
    for module in list(folded.modules()):
        conv, norm = getattr(module, "conv", None), getattr(module, "norm", None)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not isinstance(conv, _CONVOLUTIONS + _TRANSPOSED):
            continue
        if norm.running_mean is None or norm.running_var is None:
            continue  # statistics of the batch: nothing is constant
        with torch.no_grad():
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight.double(),
                None if conv.bias is None else conv.bias.double(),
                norm.running_mean.double(),
                norm.running_var.double(),
                norm.eps,
                None if norm.weight is None else norm.weight.double(),
                None if norm.bias is None else norm.bias.double(),
                transpose=isinstance(conv, _TRANSPOSED),
            )
            conv.to(norm.running_mean.dtype)
        module.norm = nn.Identity()
    return folded
