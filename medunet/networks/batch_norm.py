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
        self._check_input_dim(input)
        weight = input.new_ones(self.num_features, dtype=torch.float32) if self.weight is None else self.weight
        bias = torch.zeros_like(weight) if self.bias is None else self.bias
        output, mean, var, count = _Normalise.apply(input, weight, bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), momentum)  # unbiased, as in PyTorch
        return output


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


class _Normalise(torch.autograd.Function):
    """Normalise by the mean and the (biased) variance of all processes, with PyTorch's own kernels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Any:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        local_var, local_mean = torch.var_mean(x.float(), axes, correction=0)
        local_count = torch.full_like(local_mean[:1], x.numel() / x.shape[1])
        local = torch.cat([local_mean, local_var, local_count])
        parts = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, local)
        means, variances, counts = torch.stack(parts).split([len(local_mean), len(local_var), 1], dim=1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.mark_non_differentiable(mean, var, count)
        return nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        # with z = (x - mean) / std, all sums over all processes:
        # dx = weight / std * (dy - sum(dy) / N - z * sum(dy * z) / N)
        x, weight, mean, var, count = ctx.saved_tensors
        direct, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([by_weight, by_bias])
        distributed.all_reduce(sums)
        total_weight, total_bias = sums.chunk(2)
        inverse = torch.rsqrt(var + ctx.eps)
        slope = -weight * inverse**2 * total_weight / count
        shift = -weight * inverse * total_bias / count - slope * mean
        view = (1, -1) + (1,) * (x.dim() - 2)
        through = torch.addcmul(shift.reshape(view), x.float(), slope.reshape(view))
        return (direct + through).to(x.dtype), by_weight, by_bias, None
