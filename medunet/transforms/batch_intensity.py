"""Random grey values of a whole batch where it lies: on a GPU one pass for all images, each with its own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import RandScaleIntensityd, RandShiftIntensityd

from medunet.errors import ConfigError

from .intensity import SEED_LIMIT, RandNoised

KINDS = (RandScaleIntensityd, RandShiftIntensityd, RandNoised)
"""Transforms of single images whose settings are understood."""


class BatchIntensity:
    """Does to a batch what transforms of single images do to each, by their settings.

    Brightness by factor and offset become one multiplication and one addition of the batch, noise is drawn for the
    images that get some. Each image draws whether and how strong for itself. All numbers but the noise come from NumPy
    on the CPU, so that a seed means the same on every device; noise follows from the seed and the kind of device.

    Args:
        steps: dictionary transforms of `KINDS`, in order; their keys and random states do not count.

    Raises:
        ConfigError: a transform of another kind, or one that draws for each channel.

    Example:
        >>> brighter = BatchIntensity([RandShiftIntensityd("image", offsets=(2.0, 2.0), prob=1.0)])
        >>> brighter(torch.zeros(2, 1, 3), seed=0).unique().tolist()
        [2.0]
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        for step in steps:
            part = getattr(step, "scaler", None) or getattr(step, "shifter", None)
            if not isinstance(step, KINDS) or getattr(part, "channel_wise", False):
                raise ConfigError(
                    "this change of grey values is not known for batches",
                    received=type(step).__name__,
                    expected=", ".join(kind.__name__ for kind in KINDS),
                    remedy="set batch_intensity to false: each patch is then changed by itself",
                )
        self.steps = tuple(steps)

    def __call__(self, images: torch.Tensor, *, seed: int | Sequence[int]) -> torch.Tensor:
        """Change a batch.

        Args:
            images: `(B, C, *spatial)`, a floating type, on any device; left as it is.
            seed: of all random numbers of this batch, such as ``(seed, rank, iteration)``.

        Returns:
            A new tensor of the same shape and type, or the same one where nothing was drawn.
        """
        generator = np.random.default_rng(seed)
        count = len(images)
        scale, offset = np.ones(count), np.zeros(count)
        for step in self.steps:
            drawn = generator.random(count) < step.prob
            if isinstance(step, RandNoised):
                strength = _uniform(generator, step.std, count) * drawn
                noise_seed = int(generator.integers(SEED_LIMIT))
                if drawn.any():
                    images = _add_noise(_linear(images, scale, offset), strength, seed=noise_seed)
                    scale, offset = np.ones(count), np.zeros(count)
            elif isinstance(step, RandScaleIntensityd):
                factors = 1 + _uniform(generator, step.scaler.factors, count) * drawn
                scale, offset = scale * factors, offset * factors
            else:
                offset = offset + _uniform(generator, step.shifter.offsets, count) * drawn
        return _linear(images, scale, offset)


def _uniform(generator: np.random.Generator, limits: tuple[float, float], count: int) -> np.ndarray:
    return generator.uniform(limits[0], limits[1], count)


def _linear(images: torch.Tensor, scale: np.ndarray, offset: np.ndarray) -> torch.Tensor:
    """One fused pass over all images, or none."""
    if (scale == 1).all() and not offset.any():
        return images
    shape = (len(images), *[1] * (images.ndim - 1))
    numbers = torch.as_tensor(np.stack([scale, offset]), dtype=images.dtype)
    a, b = numbers.to(images.device, non_blocking=True).reshape(2, *shape)
    return torch.addcmul(b, images, a)


def _add_noise(images: torch.Tensor, strength: np.ndarray, *, seed: int) -> torch.Tensor:
    generator = torch.Generator(images.device).manual_seed(seed)
    changed = images.clone()
    for index in np.flatnonzero(strength):
        noise = torch.randn(images[index].shape, dtype=images.dtype, device=images.device, generator=generator)
        changed[index].add_(noise, alpha=float(strength[index]))
    return changed
