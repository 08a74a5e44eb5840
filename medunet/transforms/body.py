"""Where the body is, for MONAI's cropping."""

from __future__ import annotations

import torch


class AboveThreshold:
    """Selects voxels above a threshold, for `CropForegroundd(select_fn=...)`; all of an image that has none.

    Args:
        threshold: in the units of the image, for instance -500 Hounsfield units between air and skin.

    Example:
        >>> AboveThreshold(0)(torch.tensor([-1.0, 2.0])).tolist()
        [False, True]
        >>> AboveThreshold(5)(torch.tensor([-1.0, 2.0])).tolist()
        [True, True]
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A mask of the shape of the image."""
        mask = image > self.threshold
        return mask if bool(mask.any()) else torch.ones_like(mask)
