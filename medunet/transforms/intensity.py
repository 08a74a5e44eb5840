"""Intensity changes: which of MONAI's to use, and the one that is faster here.

Measured on a patch of 40 x 56 x 40 voxels with one CPU thread, MONAI 1.6.1; all work on tensors and keep the meta data:

=====================  ========================================================  =======
change                 transform                                                 time/ms
=====================  ========================================================  =======
noise                  `RandNoised` (MONAI's `RandGaussianNoised`: 1.9)              0.4
blur                   `RandGaussianSmoothd`                                         1.6
brightness, factor     `RandScaleIntensityd`                                         0.2
brightness, offset     `RandShiftIntensityd`                                         0.1
contrast about mean    `RandScaleIntensityFixedMeand(preserve_range=True)`           0.4
gamma                  `RandAdjustContrastd(retain_stats=True)`                      1.0
inverted gamma         the same with ``invert_image=True``                           1.1
low resolution         `RandSimulateLowResolutiond`                                  0.7
bias field             `RandBiasFieldd`                                              1.0
=====================  ========================================================  =======

With nnU-Net's probabilities (0.1 to 0.3 each) all together take about 1 ms a patch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform

from medunet.errors import ConfigError

SEED_LIMIT = 2**31 - 1
"""Exclusive bound of seeds drawn for PyTorch's generator: what NumPy's randint gives on every platform."""


class RandNoised(RandomizableTransform, MapTransform):
    """Add Gaussian noise of a random strength.

    MONAI's `RandGaussianNoised` draws float64 numbers with NumPy on the CPU. Here PyTorch draws them in the type and on
    the device of the image, from a generator seeded by this transform's random state, so that runs repeat. Each key
    gets noise of its own and of the same strength; integer images become float32.

    Args:
        keys: keys of images `(C, *spatial)`, tensors or arrays.
        prob: probability of adding noise.
        std: smallest and largest standard deviation, uniform, in units of the image.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ConfigError: `std` is not a range.

    Example:
        >>> noisy = RandNoised("image", prob=1.0, std=(0.1, 0.1)).set_random_state(0)({"image": torch.zeros(1, 99, 99)})
        >>> f"{noisy['image'].std():.2f}"
        '0.10'
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        prob: float = 0.1,
        std: Sequence[float] = (0.0, 0.1),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(std) != 2 or not 0 <= std[0] <= std[1]:
            raise ConfigError("std is not a range", received=list(std), expected="two numbers >= 0, smallest first")
        self.std = (float(std[0]), float(std[1]))
        self._strength = 0.0
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether, how strong, and from which seed."""
        super().randomize(None)
        self._strength = self.R.uniform(*self.std)
        self._seed = int(self.R.randint(SEED_LIMIT))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with noisy images."""
        item = dict(data)
        self.randomize()
        if not self._do_transform:
            return item
        generators: dict[torch.device, torch.Generator] = {}
        for key in self.key_iterator(item):
            image = item[key]
            plain = image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)
            if plain.device not in generators:
                generators[plain.device] = torch.Generator(plain.device).manual_seed(self._seed)
            dtype = plain.dtype if plain.is_floating_point() else torch.float32
            noise = torch.randn(plain.shape, dtype=dtype, device=plain.device, generator=generators[plain.device])
            noisy = noise.mul_(self._strength).add_(plain)
            item[key] = MetaTensor(noisy).copy_meta_from(image) if isinstance(image, MetaTensor) else noisy
        return item
