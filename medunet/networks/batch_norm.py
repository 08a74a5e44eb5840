"""Batch norm over the batches of all processes, on devices that PyTorch's does not support."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``torch.nn.SyncBatchNorm`` for every device and backend: the same weights, names and results.

    PyTorch's own rejects CPUs. In training in several processes, mean and variance are those of the voxels of all of
    them, also in the backward pass: N processes with B samples each compute what one process computes with N times B.
    In evaluation, and in a single process, it is plain batch norm. Gradients of weight and bias are those of this
    process; DistributedDataParallel averages them.

    Every process must call it equally often, with at least one voxel.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, got {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise ``(B, C, *spatial)``."""
        alone = not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1
        if not self.training or alone:
            return super().forward(input)
        self._check_input_dim(input)
        weight = input.new_ones(self.num_features, dtype=torch.float32) if self.weight is None else self.weight
        bias = torch.zeros_like(weight) if self.bias is None else self.bias
        output, mean, var, count = _Normalise.apply(input, weight, bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, var, count)
        return output

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor) -> None:
        """Update the running statistics; the variance is unbiased, as in PyTorch."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * count / (count - 1).clamp(min=1), share)


def synchronize_norms(network: nn.Module) -> nn.Module:
    """Return a network with batch norms over all processes: PyTorch's for NCCL, else :class:`SynchronizedBatchNorm`.

    Weights stay the same objects, and norms of other kinds stay as they are.

    Example:
        >>> network = synchronize_norms(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
        >>> type(network[1]).__name__
        'SynchronizedBatchNorm'
    """
    if distributed.is_available() and distributed.is_initialized() and "nccl" in distributed.get_backend():
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if isinstance(network, nn.modules.batchnorm._BatchNorm):
        return _converted(network)
    for name, child in network.named_children():
        setattr(network, name, synchronize_norms(child))
    return network


def _converted(norm: nn.modules.batchnorm._BatchNorm) -> SynchronizedBatchNorm:
    converted = SynchronizedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    converted.weight, converted.bias = norm.weight, norm.bias
    converted.running_mean, converted.running_var = norm.running_mean, norm.running_var
    converted.num_batches_tracked = norm.num_batches_tracked
    return converted.train(norm.training)


class _Normalise(torch.autograd.Function):
    """Normalise by the mean and the (biased) variance of all processes, with PyTorch's own kernels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Any:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        own_var, own_mean = torch.var_mean(x.float(), axes, correction=0)
        own_count = torch.full_like(own_mean[:1], x.numel() / x.shape[1])
        own = torch.cat([own_mean, own_var, own_count])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).split([len(own_mean), len(own_var), 1], dim=1)
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
