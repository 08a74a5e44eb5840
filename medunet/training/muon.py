"""Muon: updates of equal size in all directions of a layer, so that training needs fewer steps than with AdamW."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from medunet.errors import ConfigError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that brings singular values near 1 (Jordan 2024)
ROUNDS = 5
RMS = 0.2  # of an update; AdamW's is about as large, so both take the same learning rate (Liu et al. 2025)


class Muon(torch.optim.Optimizer):
    """Muon for convolutions, AdamW for norms and biases.

    The momentum of a convolution, flattened to a matrix `(out, in * kernel)`, is replaced by the nearest matrix with
    orthogonal rows, so that rare directions learn as fast as frequent ones. torch.optim.Muon does this for matrices
    only, and in bfloat16, which is slow on a CPU without instructions for it.

    Args:
        params: parameters; those with more than one axis are orthogonalised.
        lr: learning rate, as for AdamW.
        betas: decay of the momentum, and of AdamW's squared gradients.
        weight_decay: decoupled weight decay.

    Raises:
        ConfigError: a negative learning rate or weight decay, or betas out of [0, 1).

    Sources: Jordan, https://kellerjordan.github.io/posts/muon (2024); Liu et al., arXiv 2502.16982, for the size of a
        step.
    """

    _step_supports_amp_scaling = True  # a GradScaler sets grad_scale and found_inf, and does not wait for the device

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.006,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.01,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            received = f"lr={lr}, weight_decay={weight_decay}, betas={betas}"
            raise ConfigError("lr and weight_decay must be at least 0, betas in [0, 1)", received=received)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return the loss of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        keep = 1.0 if found_inf is None else (found_inf == 0).float()  # 0: an overflow changes no weight
        for group in self.param_groups:
            rate = group["lr"] * keep
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad if scale is None else weight.grad / scale
                gradient = gradient if found_inf is None else gradient.nan_to_num(0, 0, 0)
                weight.mul_(1 - rate * group["weight_decay"])
                weight.sub_(self._update(weight, gradient, group["betas"], keep) * rate)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, betas: tuple[float, float], keep: Any) -> Tensor:
        """Advance the state of a parameter; return its update."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            if weight.ndim < 2:
                state["square"], state["step"] = torch.zeros_like(weight), 0
        momentum = state["momentum"].lerp_(gradient, (1 - betas[0]) * keep)
        if weight.ndim >= 2:
            return orthogonal(gradient.lerp(momentum, betas[0]).flatten(1)).view_as(weight)  # Nesterov
        state["step"] += 1
        square = state["square"].lerp_(gradient.square(), (1 - betas[1]) * keep)
        size = (square / (1 - betas[1] ** state["step"])).sqrt_().add_(1e-8)
        return momentum / (1 - betas[0] ** state["step"]) / size


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthogonal rows or columns, scaled to a root mean square of about `RMS`.

    The Newton-Schulz iteration runs on the product of the rows, which is much smaller than a convolution's matrix.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T
    total = one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    first, second, third = COEFFICIENTS
    for _ in range(ROUNDS):
        factor = first * one + second * gram + third * gram @ gram
        total, gram = factor @ total, factor @ gram @ factor
    wide = total @ wide * (RMS * max(matrix.shape) ** 0.5)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
