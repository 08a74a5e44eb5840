"""Classes of objects, and the distance to the border of the object that separates touching objects."""

import torch
import torch.nn.functional as F
from torch import nn

from .regions import RegionDiceCELoss
from .targets import align_targets


class DistanceLoss(nn.Module):
    """Soft Dice plus binary cross entropy of each class of objects, and binary cross entropy of the distance.

    The distance in [0, 1] is learned like a probability, as StarDist does: the sigmoid keeps it in its range, and cross
    entropy has steep gradients where an absolute or squared error is flat.

    Args:
        n_classes: number of classes of objects; the logits have one channel more.
        center_crop: for networks with valid convolutions, crop target and distances to the middle.

    Raises:
        ConfigError: when called, another number of channels.

    Examples:
        >>> logits = torch.tensor([[[[-9.0, 9.0]], [[-9.0, 0.0]]]])  # (1, 2, 1, 2): object in the right pixel
        >>> loss = DistanceLoss()(logits, torch.tensor([[[[0, 1]]]]), torch.tensor([[[[0.0, 0.5]]]]))
        >>> f"{loss:.2f}"  # half the entropy of 0.5
        '0.35'
    """

    def __init__(self, *, n_classes: int = 1, center_crop: bool = False) -> None:
        super().__init__()
        self.classes = RegionDiceCELoss([[index] for index in range(1, n_classes + 1)], center_crop=center_crop)
        self.center_crop = center_crop

    def forward(
        self, logits: torch.Tensor, target: torch.Tensor, distance: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logits: `(B, n_classes + 1, *spatial)`.
            target: class indices, `(B, 1, *spatial)` or `(B, *spatial)`.
            distance: distances in [0, 1], of the target's shape.
            weight: weights of the distances, of the target's shape; only their ratios count. None for equal weights.

        Raises:
            ConfigError: shapes that do not match.
        """
        _, wanted = align_targets(logits, target, distance, center_crop=self.center_crop)
        assert wanted is not None  # `distance` is not None
        weights = None
        if weight is not None:
            _, aligned = align_targets(logits, target, weight, center_crop=self.center_crop)
            assert aligned is not None
            weights = aligned / aligned.mean()
        loss: torch.Tensor = F.binary_cross_entropy_with_logits(logits[:, -1].float(), wanted, weight=weights)
        return loss + self.classes(logits[:, :-1], target)
