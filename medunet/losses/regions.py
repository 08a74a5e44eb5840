"""Dice with binary cross entropy for regions, which are classes that may overlap."""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import nn

from medunet.errors import ConfigError

from .targets import align_targets


class RegionDiceCELoss(nn.Module):
    """Soft Dice plus binary cross entropy on logits of one channel per region (nnU-Net's region-based training).

    Targets are class indices, as for other losses, so that one uint8 map is moved and deformed instead of one mask per
    region.

    Args:
        regions: class indices of each region, ``[[1, 2, 3], [2, 3], [3]]`` for whole, core and enhancing tumour.
        batch: sum intersections and volumes over the batch before dividing; more stable if a patch lacks a region.
        ignore_index: class index of voxels that count in neither term.
        lambda_dice: factor of Dice.
        lambda_ce: factor of the cross entropy, the mean over voxels and regions.
        smooth: added to numerator and denominator of Dice, in voxels.
        center_crop: for networks with valid convolutions, crop target and weights to the middle.

    Raises:
        ConfigError: no region, or an empty one; when called, different numbers of channels and regions.

    Examples:
        >>> loss = RegionDiceCELoss([[1, 2], [2]])
        >>> logits = torch.tensor([[[[-9.0, 9.0, 9.0]], [[-9.0, -9.0, 9.0]]]])  # (1, 2, 1, 3), sure and right
        >>> f"{loss(logits, torch.tensor([[[[0, 1, 2]]]])):.3f}"
        '0.000'
    """

    def __init__(
        self,
        regions: Sequence[Sequence[int]],
        *,
        batch: bool = True,
        ignore_index: int | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        smooth: float = 1e-5,
        center_crop: bool = False,
    ) -> None:
        super().__init__()
        if not regions or not all(regions):
            raise ConfigError("regions must have class indices", received=regions, expected="such as [[1, 2], [2]]")
        self.regions = tuple(tuple(int(index) for index in region) for region in regions)
        self.ignore_index = ignore_index
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.center_crop = center_crop
        self.dice = DiceLoss(batch=batch, smooth_nr=smooth, smooth_dr=smooth)

    def forward(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of a batch, a scalar; zero if every voxel is ignored.

        Args:
            logits: `(B, regions, *spatial)`.
            target: class indices, `(B, 1, *spatial)` or `(B, *spatial)`.
            weight: weight map of the target's shape, for the cross entropy only.

        Raises:
            ConfigError: shapes that do not match.
        """
        if logits.shape[1] != len(self.regions):
            raise ConfigError("channels do not match the regions", received=logits.shape[1], expected=len(self.regions))
        indices, weights = align_targets(logits, target, weight, center_crop=self.center_crop)
        regions = [reduce(torch.logical_or, (indices == one for one in region)) for region in self.regions]
        masks = torch.stack(regions, dim=1).float()
        values = logits.float()
        counted = (indices != (-1 if self.ignore_index is None else self.ignore_index)).float()
        share = counted if weights is None else counted * weights
        errors = F.binary_cross_entropy_with_logits(values, masks, reduction="none").mean(dim=1)
        loss: torch.Tensor = self.lambda_ce * (share * errors).sum() / counted.sum().clamp_min(1)
        if self.lambda_dice:
            known = counted[:, None]
            loss = loss + self.lambda_dice * self.dice(torch.sigmoid(values) * known, masks * known)
        return loss
