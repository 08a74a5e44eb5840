"""Intensities of several channels, each by its own rule."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet.errors import ConfigError

_NAMES = {"low", "high", "mean", "std"}


class NormalizeChannelsd(MapTransform):
    """Clip and scale each channel by fixed numbers (CT) or by its own mean and deviation (everything else).

    MONAI's `NormalizeIntensityd` knows numbers by channel, but neither clips nor mixes the two ways.

    Args:
        keys: keys of images `(C, *spatial)`.
        channels: for each channel None, which takes mean and standard deviation of the image, or the fixed
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
                raise ConfigError("channel cannot be normalised", received=dict(channel), expected=sorted(_NAMES))
        self.channels = tuple(channels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with normalised images, float32."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            plain = (image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)).float()
            if len(plain) != len(self.channels):
                raise ConfigError(
                    "image has another number of channels", received=len(plain), expected=len(self.channels)
                )
            scaled = torch.stack([_scaled(part, way) for part, way in zip(plain, self.channels, strict=True)])
            item[key] = MetaTensor(scaled).copy_meta_from(image) if isinstance(image, MetaTensor) else scaled
        return item


def _scaled(channel: torch.Tensor, way: Mapping[str, float] | None) -> torch.Tensor:
    if way is not None:
        return (channel.clamp(way["low"], way["high"]) - way["mean"]) / (way["std"] or 1.0)
    std, mean = torch.std_mean(channel, correction=0)
    return (channel - mean) / torch.where(std > 0, std, torch.ones_like(std))
