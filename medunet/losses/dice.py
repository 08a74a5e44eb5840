"""Dice with cross entropy, with the ignored voxels and weight maps that MONAI's lacks."""

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import nn

from .border_weighted import BorderWeightedCELoss
from .targets import align_targets


class DiceCELoss(nn.Module):
    """Soft Dice plus cross entropy on logits.

    MONAI's `DiceCELoss` has neither an ignore index nor a weight map, and computes bfloat16 logits in bfloat16. This
    class computes float32 probabilities, blanks ignored voxels, and uses MONAI's `DiceLoss` and `BorderWeightedCELoss`.
    Without ignored voxels and weights, both classes agree. One channel is the logit of class 1 of two classes.

    Args:
        include_background: count class 0 in Dice.
        batch: sum intersections and volumes over the batch before dividing; more stable if a patch lacks a class.
        class_weights: one factor per class, for the cross entropy only.
        ignore_index: class index of voxels that count in neither term.
        lambda_dice: factor of Dice.
        lambda_ce: factor of the cross entropy.
        smooth: added to numerator and denominator of Dice, in voxels; a class absent from label and prediction
            then costs nothing.
        center_crop: for networks with valid convolutions, crop target and weights to the middle.

    Examples:
        >>> logits = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])  # (1, 2, 1, 2), sure and right
        >>> f"{DiceCELoss()(logits, torch.tensor([[[[0, 1]]]])):.3f}"
        '0.000'
    """

    def __init__(
        self,
        *,
        include_background: bool = False,
        batch: bool = True,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        smooth: float = 1e-5,
        center_crop: bool = False,
    ) -> None:
        super().__init__()
        self.include_background = include_background
        self.ignore_index = ignore_index
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.center_crop = center_crop
        # The background is dropped here and not by MONAI, which warns if one channel is left.
        self.dice = DiceLoss(batch=batch, smooth_nr=smooth, smooth_dr=smooth)
        self.cross_entropy = BorderWeightedCELoss(class_weights, ignore_index, center_crop=center_crop)

    def forward(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logits: `(B, C, *spatial)`.
            target: class indices, `(B, 1, *spatial)` or `(B, *spatial)`.
            weight: weight map of the target's shape, for the cross entropy only.

        Raises:
            ConfigError: shapes or class weights that do not match.
        """
        loss: torch.Tensor = self.lambda_ce * self.cross_entropy(logits, target, weight)
        return loss + self.lambda_dice * self._dice_loss(logits, target) if self.lambda_dice else loss

    def _dice_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        indices, _ = align_targets(logits, target, None, center_crop=self.center_crop)
        values = torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
        probabilities = torch.softmax(values.float(), dim=1)
        ignored = None if self.ignore_index is None else indices == self.ignore_index
        if ignored is not None:
            indices = indices.masked_fill(ignored, 0)
        onehot = torch.zeros_like(probabilities).scatter_(1, indices[:, None], 1.0)  # F.one_hot would be int64
        if ignored is not None:
            probabilities, onehot = (part.masked_fill(ignored[:, None], 0.0) for part in (probabilities, onehot))
        if not self.include_background:
            probabilities, onehot = probabilities[:, 1:], onehot[:, 1:]
        loss: torch.Tensor = self.dice(probabilities, onehot)
        return loss
