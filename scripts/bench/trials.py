"""A loss and an optimizer that `changes` tries; medunet does not have them, because they gain too little."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from medunet.losses import DiceCELoss


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance to the border in voxels, negative inside; zeros for a mask of one value."""
    if mask.all() or not mask.any():
        return np.zeros(mask.shape, np.float32)
    distance: np.ndarray = distance_transform_edt(~mask) - distance_transform_edt(mask)
    return distance.astype(np.float32)


class BoundaryLoss(DiceCELoss):
    """Dice and cross entropy plus `share` times the boundary loss of Kervadec et al. 2019, of the foreground."""

    def __init__(self, share: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.share = share

    def forward(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of logits `(B, C, *spatial)` and class indices `(B, 1, *spatial)`."""
        loss = super().forward(logits, target, weight)
        indices = np.asarray(target[:, 0].cpu())
        for index in range(1, logits.shape[1]):
            distances = torch.from_numpy(np.stack([signed_distance(one == index) for one in indices]))
            probability = torch.softmax(logits.float(), dim=1)[:, index]
            loss = loss + self.share * (probability * distances.to(logits.device)).mean() / (logits.shape[1] - 1)
        return loss


def schedule_free(params: Any, lr: float, steps: int, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    """Return schedule-free AdamW (Defazio et al. 2024; `pip install schedulefree`), with averaged weights at the end.

    Batch norm keeps the statistics of the weights of the last steps, which are not the averaged ones.
    """
    from schedulefree import AdamWScheduleFree  # noqa: PLC0415 - only this trial needs it

    optimizer = AdamWScheduleFree(params, lr=lr, warmup_steps=steps // 20, weight_decay=weight_decay)
    optimizer.train()
    done = 0

    def after_step(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == steps:
            optimizer.eval()

    optimizer.register_step_post_hook(after_step)
    return optimizer
