"""Batch norm over the batches of all processes, on devices that PyTorch's does not support."""

from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SynchronizedBatchNorm(_BatchNorm):
    """``torch.nn.SyncBatchNorm`` for every device and backend: the same weights, names and results.

    PyTorch's own rejects CPUs, and DistributedDataParallel rejects its subclasses there. In evaluation, and in a single
    process, it is plain batch norm. Every process must call it equally often, with at least one voxel.
    DistributedDataParallel averages the gradients of weight and bias.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Take any number of spatial axes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise ``(B, C, *spatial)``."""
        alone = not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1
        if not self.training or alone:
            return _BatchNorm.forward(self, input)
        axes, view = [0, *range(2, input.dim())], (1, -1) + (1,) * (input.dim() - 2)
        x = input.float()
        local_var, local_mean = torch.var_mean(x, axes, correction=0)
        voxels = torch.full_like(local_mean[:1], x.numel() / x.shape[1])
        total, count = _Sum.apply(torch.cat([local_mean * voxels, voxels])).split([self.num_features, 1])
        mean = total / count
        var = _Sum.apply((local_var + (local_mean - mean) ** 2) * voxels) / count
        scale = torch.rsqrt(var + self.eps) if self.weight is None else self.weight * torch.rsqrt(var + self.eps)
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), momentum)  # unbiased, as in PyTorch
        return torch.addcmul(shift.reshape(view), x, scale.reshape(view)).to(input.dtype)


def synchronize_norms(network: nn.Module) -> nn.Module:
    """Return a network with batch norms over all processes: PyTorch's for NCCL, else :class:`SynchronizedBatchNorm`.

    Weights stay the same objects, and norms of other kinds stay as they are.

    Examples:
        >>> network = synchronize_norms(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
        >>> type(network[1]).__name__
        'SynchronizedBatchNorm'
    """
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if not (distributed.is_available() and distributed.is_initialized() and "nccl" in distributed.get_backend()):
        for module in network.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = SynchronizedBatchNorm  # type: ignore[assignment]  # the attributes are those of both
    return network


class _Sum(torch.autograd.Function):
    """Sum over all processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total
