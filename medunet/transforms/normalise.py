"""Intensity normalisation per channel, and foreground selection by a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection

from medunet.errors import ConfigError

from .tensors import TensorTransform

_NAMES = {"low", "high", "mean", "std"}


class NormalizeChannelsd(TensorTransform):
    """Clip and scale each channel by fixed numbers (CT) or by its own mean and standard deviation (everything else).

    MONAI's `NormalizeIntensityd` takes numbers per channel, but does not clip and cannot mix the two.

    Args:
        keys: keys of images `(C, *spatial)`; the results are float32.
        channels: per channel None for the image's own mean and standard deviation, or the fixed
            ``{"low": ..., "high": ..., "mean": ..., "std": ...}``.

    Raises:
        ConfigError: other names, or an image with another number of channels.

    Example:
        >>> ct = {"low": -100, "high": 300, "mean": 100, "std": 50}
        >>> image = torch.tensor([[-1000.0, 150.0], [1.0, 3.0]])
        >>> NormalizeChannelsd("image", [ct, None])({"image": image})["image"]
        tensor([[-4.,  1.],
                [-1.,  1.]])
    """

    def __init__(self, keys: KeysCollection, channels: Sequence[Mapping[str, float] | None]) -> None:
        super().__init__(keys)
        for channel in channels:
            if channel is not None and channel.keys() != _NAMES:
                raise ConfigError("invalid normalisation of a channel", received=dict(channel), expected=sorted(_NAMES))
        self.channels = tuple(channels)

    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        if len(values) != len(self.channels):
            raise ConfigError("wrong number of channels", received=len(values), expected=len(self.channels))
        return torch.stack([_scaled(part, by) for part, by in zip(values.float(), self.channels, strict=True)])


class AboveThreshold:
    """Selects voxels above a threshold, for `CropForegroundd(select_fn=...)`; all voxels if none is above it.

    Args:
        threshold: in the units of the image, such as -500 Hounsfield units between air and skin.
        absolute: compare absolute values: a threshold of 0 then selects all voxels that are not 0.

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
        """Return a mask of the shape of the image."""
        mask = (image.abs() if self.absolute else image) > self.threshold
        return mask if bool(mask.any()) else torch.ones_like(mask)


def _scaled(channel: torch.Tensor, numbers: Mapping[str, float] | None) -> torch.Tensor:
    if numbers is not None:
        return (channel.clamp(numbers["low"], numbers["high"]) - numbers["mean"]) / (numbers["std"] or 1.0)
    std, mean = torch.std_mean(channel, correction=0)
    return (channel - mean) / torch.where(std > 0, std, torch.ones_like(std))
