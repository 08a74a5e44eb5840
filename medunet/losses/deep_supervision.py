"""One loss over the outputs of several levels of a network."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medunet.errors import ConfigError


class DeepSupervisionLoss(nn.Module):
    """Weighted mean of a loss over the levels of a deeply supervised network, finest first.

    MONAI's class of this name does not pass on a weight map and fails for int64 labels. Target and weight map are
    reduced to the size of each level by the nearest voxel, so that a weight stays with its label. The weights of the
    levels add up to 1, as in nnU-Net, so that the loss has the same scale with and without deep supervision.

    Args:
        loss: called as ``loss(logits, target)`` or, with a weight map, ``loss(logits, target, weight)``.
        level_weights: relative weights of the levels, finest first; None for 1, 1/2, 1/4, ...

    Examples:
        >>> target = torch.zeros(1, 1, 4, 4)
        >>> levels = [torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 2, 2), 4.0)]
        >>> DeepSupervisionLoss(nn.L1Loss())(levels, target)  # 2/3 * 1 + 1/3 * 4
        tensor(2.)
    """

    def __init__(self, loss: nn.Module, *, level_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.level_weights = None if level_weights is None else tuple(float(w) for w in level_weights)
        if self.level_weights is not None and (min(self.level_weights) < 0 or sum(self.level_weights) == 0):
            raise ConfigError("level_weights must be numbers >= 0, not all 0", received=level_weights)

    def forward(
        self, logits: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, *maps: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logits: one tensor `(B, C, *spatial)`, whose loss is not weighted, or one tensor per level, finest first.
            target: `(B, 1, *spatial)` at the size of the finest level.
            maps: further arguments of the loss, such as a weight map, of the target's shape.

        Raises:
            ConfigError: more levels than weights, or no weight above 0 for these levels.
        """
        if isinstance(logits, torch.Tensor):
            return self.loss(logits, target, *maps)
        levels = list(logits)
        weights = self.level_weights or tuple(0.5**level for level in range(len(levels)))
        if len(levels) > len(weights):
            raise ConfigError("level_weights must have one number per level", received=weights, expected=len(levels))
        weights = weights[: len(levels)]
        if sum(weights) == 0:
            raise ConfigError("level_weights must have a number > 0 for a level of the network", received=weights)
        loss = torch.zeros((), device=levels[0].device)
        for level, (share, level_logits) in enumerate(zip(weights, levels, strict=True)):
            if share == 0:
                continue
            fitted = [_nearest(one, level_logits.shape[2:]) for one in (target, *maps)] if level else (target, *maps)
            loss = loss + share / sum(weights) * self.loss(level_logits, *fitted)
        return loss


def _nearest(volume: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Resize `(B, 1, *spatial)` in float32, because PyTorch does not resize int64; class indices stay exact."""
    return F.interpolate(volume.float(), size=size, mode="nearest-exact").to(volume.dtype)
