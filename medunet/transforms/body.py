"""Where the body is, for MONAI's cropping."""

from __future__ import annotations

import torch


class AboveThreshold:
    """Selects voxels above a threshold, for `CropForegroundd(select_fn=...)`; all of an image that has none.

    Args:
        threshold: in the units of the image, for instance -500 Hounsfield units between air and skin.
        absolute: whether the sign does not count: with a threshold of 0 all that is not 0 is selected.

    Example:
        >>> AboveThreshold(0)(torch.tensor([-1.0, 2.0])).tolist()
        [False, True]
        >>> AboveThreshold(5)(torch.tensor([-1.0, 2.0])).tolist()
        [True, True]
        >>> AboveThreshold(0, absolute=True)(torch.tensor([-1.0, 0.0])).tolist()
        [True, False]
    """

    def __init__(self, threshold: float, *, absolute: bool = False) -> None:
        self.threshold = threshold
        self.absolute = absolute

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A mask of the shape of the image."""
        mask = (image.abs() if self.absolute else image) > self.threshold
        return mask if bool(mask.any()) else torch.ones_like(mask)
