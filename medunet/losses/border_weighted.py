"""Pixel-weighted cross entropy (Ronneberger et al. 2015)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medunet.errors import ConfigError

from .targets import align_targets

REDUCTIONS = ("mean", "weighted_mean", "sum")


class BorderWeightedCELoss(nn.Module):
    """Cross entropy with one weight per voxel: equation 1 of Ronneberger et al. 2015, U-Net.

    The paper writes a sum, ``E = -sum_x w(x) log p_l(x)(x)``. The default here, ``mean``, divides it by the number of
    voxels that count, so that the learning rate does not depend on the size of the patch. ``weighted_mean`` divides by
    the sum of their weights: an image with many touching objects then counts no more than one without.

    One channel is the logit of class 1 of two classes. Everything is computed in float32.

    Args:
        class_weights: one factor per class, on top of the weight map; two for logits of one channel.
        ignore_index: class index of voxels that do not count.
        reduction: one of `REDUCTIONS`.
        center_crop: for networks with valid convolutions, crop target and weights to the middle.

    Examples:
        >>> logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0, 1]]]])
        >>> BorderWeightedCELoss(reduction="sum")(logits, target, torch.tensor([[[[1.0, 3.0]]]]))  # 4 log 2
        tensor(2.7726)
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        *,
        reduction: str = "mean",
        center_crop: bool = False,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ConfigError("unknown reduction", received=reduction, expected=", ".join(REDUCTIONS))
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and (weights.ndim != 1 or bool((weights < 0).any()) or not bool((weights > 0).any())):
            raise ConfigError("class_weights must be numbers >= 0, not all 0", received=class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.center_crop = center_crop

    def forward(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of a batch, a scalar; zero if every voxel is ignored.

        Args:
            logits: `(B, C, *spatial)`.
            target: class indices, `(B, 1, *spatial)` or `(B, *spatial)`.
            weight: weight map of the target's shape, such as `BorderWeightMapd` makes; None for ones.

        Raises:
            ConfigError: shapes or class weights that do not match.
        """
        classes = max(2, logits.shape[1])
        if self.class_weights is not None and len(self.class_weights) != classes:
            received = len(self.class_weights)
            raise ConfigError("class_weights must have one number per class", received=received, expected=classes)
        indices, weights = align_targets(logits, target, weight, center_crop=self.center_crop)
        counted = torch.ones_like(indices, dtype=torch.float32)
        if self.ignore_index is not None:
            counted = (indices != self.ignore_index).float()
            indices = indices.masked_fill(indices == self.ignore_index, 0)
        weights = counted if weights is None else counted * weights
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(logits.device)[indices]

        total = (weights * cross_entropy(logits, indices)).sum()
        if self.reduction == "sum":
            return total
        divisor = counted.sum() if self.reduction == "mean" else weights.sum()
        return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def cross_entropy(logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy per voxel, `(B, *spatial)` float32; one channel is the logit of class 1 of two."""
    values = logits.float()
    if values.shape[1] == 1:  # not binary_cross_entropy, which accepts any number as target
        values = torch.cat([torch.zeros_like(values), values], dim=1)
    try:
        return F.cross_entropy(values, indices, reduction="none")
    except IndexError as error:
        received, expected = f"{int(indices.min())} to {int(indices.max())}", f"0 to {values.shape[1] - 1}"
        cause, remedy = "targets must be class indices", "map the values of the label to indices, or give ignore_index"
        raise ConfigError(cause, received=received, expected=expected, remedy=remedy) from error
