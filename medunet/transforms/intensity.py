"""Intensities: normalisation per channel, and random changes of single images and of whole batches on their device."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, RandScaleIntensityd, RandShiftIntensityd
from monai.transforms.utils_pytorch_numpy_unification import percentile
from scipy.ndimage import binary_fill_holes

from medunet.errors import ConfigError, DataError

from .tensors import TensorTransform, like, plain

SEED_LIMIT = 2**31 - 1  # exclusive bound of seeds for PyTorch: what NumPy's randint gives on every platform
FIXED_NUMBERS = {"low", "high", "mean", "std"}
SMALLEST_RANGE = 1e-8  # of a channel that is scaled to 0 ... 1, as in nnU-Net
SCHEMES = ("masked", "minmax", "rgb", "none")


class NormalizeChannelsd(TensorTransform):
    """Clip and scale each channel by fixed numbers (CT) or by its own values; all normalisations of nnU-Net.

    MONAI's `NormalizeIntensityd` takes numbers per channel, but does not clip and cannot mix the two.

    Args:
        keys: keys of images `(C, *spatial)`; the results are float32.
        channels: per channel None for the image's own mean and standard deviation, the fixed
            ``{"low": ..., "high": ..., "mean": ..., "std": ...}``, or a name. `masked`: mean and standard deviation of
            the voxels where any channel is not 0, holes included; others stay 0. `minmax`: to 0 ... 1. `rgb`: divide
            by 255. `none`: unchanged.

    Raises:
        ConfigError: unknown names, or an image with a different number of channels.

    Examples:
        >>> ct = {"low": -100, "high": 300, "mean": 100, "std": 50}
        >>> image = torch.tensor([[-1000.0, 150.0], [1.0, 3.0]])
        >>> NormalizeChannelsd("image", [ct, None])({"image": image})["image"]
        tensor([[-4.,  1.],
                [-1.,  1.]])
    """

    def __init__(self, keys: KeysCollection, channels: Sequence[Mapping[str, float] | str | None]) -> None:
        super().__init__(keys)
        self.channels = tuple(channels)
        for numbers in self.channels:
            if isinstance(numbers, str) and numbers not in SCHEMES:
                raise ConfigError("unknown normalisation", received=numbers, expected=", ".join(SCHEMES))
            if isinstance(numbers, Mapping) and numbers.keys() != FIXED_NUMBERS:
                expected = sorted(FIXED_NUMBERS)
                raise ConfigError("invalid normalisation of a channel", received=dict(numbers), expected=expected)

    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        if len(values) != len(self.channels):
            raise ConfigError("wrong number of channels", received=len(values), expected=len(self.channels))
        mask = None
        if "masked" in self.channels:
            filled = binary_fill_holes((values != 0).any(dim=0).cpu().numpy())
            mask = torch.from_numpy(filled).to(values.device)
        return torch.stack([_scaled(part, by, mask) for part, by in zip(values.float(), self.channels, strict=True)])


def _scaled(
    channel: torch.Tensor, numbers: Mapping[str, float] | str | None, mask: torch.Tensor | None
) -> torch.Tensor:
    if numbers == "none":
        return channel
    if numbers == "rgb":
        if channel.min() < 0 or channel.max() > 255:
            received = f"{float(channel.min()):g} to {float(channel.max()):g}"
            raise DataError("colours must be from 0 to 255", received=received)
        return channel / 255
    if numbers == "minmax":
        channel = channel - channel.min()
        return channel / channel.max().clamp(min=SMALLEST_RANGE)
    if numbers == "masked" and mask is not None:
        return torch.zeros_like(channel).masked_scatter_(mask, _scaled(channel[mask], None, None))
    if isinstance(numbers, Mapping):
        return (channel.clamp(numbers["low"], numbers["high"]) - numbers["mean"]) / (numbers["std"] or 1.0)
    std, mean = torch.std_mean(channel, correction=0)
    return (channel - mean) / torch.where(std > 0, std, torch.ones_like(std))


def has_bright_background(image: torch.Tensor) -> bool:
    """Return whether most voxels of an image `(C, *spatial)` are nearer to its bright end than to its dark one."""
    dark, middle, bright = percentile(plain(image).float().mean(dim=0), [1, 50, 99]).tolist()
    return bool(middle > (dark + bright) / 2)


class DarkBackgroundd(TensorTransform):
    """Negate images whose median is nearer to the bright end, as if objects were bright on a dark background.

    Args:
        keys: keys of images `(C, *spatial)`; the results are float32.
    """

    def _changed(self, values: torch.Tensor, source: Any) -> torch.Tensor:
        return -values.float() if has_bright_background(values) else values.float()


class NonZero:
    """Selects voxels that are not 0, for `CropForegroundd(select_fn=...)`; all voxels if every one is 0.

    Examples:
        >>> NonZero()(torch.tensor([-1.0, 0.0])).tolist()
        [True, False]
    """

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a mask of the shape of the image."""
        mask = image != 0
        return mask if bool(mask.any()) else torch.ones_like(mask)


class AboveThreshold:
    """Selects voxels above a threshold, for `CropForegroundd(select_fn=...)`; all voxels if none is above it.

    Args:
        threshold: in the units of the image, such as -500 Hounsfield units between air and skin.

    Examples:
        >>> AboveThreshold(5)(torch.tensor([-1.0, 2.0])).tolist()
        [True, True]
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a mask of the shape of the image."""
        mask = image > self.threshold
        return mask if bool(mask.any()) else torch.ones_like(mask)


class _RandStrengthd(RandomizableTransform, MapTransform):
    """Base of changes whose strength is random; integer images become float32."""

    def __init__(self, keys: KeysCollection, *, prob: float = 0.1, std: Sequence[float] = (0.0, 0.1)) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if len(std) != 2 or not 0 <= std[0] <= std[1]:
            raise ConfigError("std must be two numbers >= 0, smallest first", received=list(std))
        self.std = (float(std[0]), float(std[1]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with changed images."""
        item = dict(data)
        self.randomize(None)
        strength, seed = self.R.uniform(*self.std), int(self.R.randint(SEED_LIMIT))
        generators: dict[torch.device, torch.Generator] = {}
        for key in self.key_iterator(item) if self._do_transform else ():
            image = plain(item[key])
            image = image if image.is_floating_point() else image.float()
            generator = generators.setdefault(image.device, torch.Generator(image.device).manual_seed(seed))
            item[key] = like(self._changed(image, strength, generator), item[key])
        return item

    @abstractmethod
    def _changed(self, image: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor: ...


class RandNoised(_RandStrengthd):
    """Add Gaussian noise of a random strength.

    MONAI's `RandGaussianNoised` draws float64 numbers with NumPy on the CPU, which takes five times as long. Here
    PyTorch draws them in the type and on the device of the image, from a generator seeded by this transform's random
    state. Each key gets its own noise of the same strength; integer images become float32.

    Args:
        keys: keys of images `(C, *spatial)`, tensors or arrays.
        prob: probability of adding noise.
        std: smallest and largest standard deviation, uniform, in units of the image.

    Raises:
        ConfigError: `std` is not a range.

    Examples:
        >>> noisy = RandNoised("image", prob=1.0, std=(0.1, 0.1)).set_random_state(0)({"image": torch.zeros(1, 99, 99)})
        >>> f"{noisy['image'].std():.2f}"
        '0.10'
    """

    def _changed(self, image: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(image.shape, dtype=image.dtype, device=image.device, generator=generator)
        return noise.mul_(strength).add_(image)


class RandBiasd(_RandStrengthd):
    """Shade images like the bias field of MR: multiply them by the exponential of a random polynomial of degree 2.

    MONAI's `RandBiasFieldd` multiplies normalised intensities, whose mean is 0. This transform multiplies the distance
    from the minimum and keeps mean and standard deviation, as if the image had been shaded before its normalisation.

    Args:
        keys: keys of images `(C, *spatial)`, tensors or arrays; the channels of an image share a field.
        prob: probability of shading.
        std: smallest and largest standard deviation of the coefficients; coordinates are from -1 to 1 along each axis.
    """

    def _changed(self, image: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
        field, axes = torch.zeros_like(image[:1]), tuple(range(1, image.ndim))
        for axis in axes:
            first, second = strength * torch.randn(2, dtype=image.dtype, device=image.device, generator=generator)
            place = torch.linspace(-1, 1, image.shape[axis], dtype=image.dtype, device=image.device)
            field += (first * place + second * place**2).reshape([-1 if k == axis else 1 for k in range(image.ndim)])
        shaded = (image - image.amin(axes, keepdim=True)) * field.exp()
        std, mean = torch.std_mean(shaded, axes, keepdim=True)
        old_std, old_mean = torch.std_mean(image, axes, keepdim=True)
        return (shaded - mean) * (old_std / std.clamp(min=SMALLEST_RANGE)) + old_mean


KINDS = (RandScaleIntensityd, RandShiftIntensityd, RandNoised, RandBiasd)
"""Transforms that `BatchIntensity` supports; others may move voxels, or make the host wait for a GPU."""


class BatchIntensity:
    """Changes every image of a batch as transforms of single images would with the same settings.

    Brightness by factor and offset becomes one multiplication and addition of the batch; other changes are made image
    by image. Each image draws for itself whether and how strongly it changes. All numbers but those of noise and
    shading come from NumPy on the CPU, so that a seed means the same on every device.

    Args:
        steps: dictionary transforms of `KINDS`, in order; their random states are ignored.

    Raises:
        ConfigError: a transform of another kind.

    Examples:
        >>> brighter = BatchIntensity([RandShiftIntensityd("image", offsets=(2.0, 2.0), prob=1.0)])
        >>> brighter(torch.zeros(2, 1, 3), seed=0).unique().tolist()
        [2.0]
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        for step in steps:
            if not isinstance(step, KINDS):
                cause, expected = "this transform does not work on batches", ", ".join(kind.__name__ for kind in KINDS)
                remedy = "move it from intensity_steps to contrast_steps"
                raise ConfigError(cause, received=type(step).__name__, expected=expected, remedy=remedy)
        self.steps = tuple(steps)

    def __call__(self, images: torch.Tensor, *, seed: int | Sequence[int]) -> torch.Tensor:
        """Return an augmented batch.

        Args:
            images: `(B, C, *spatial)`, a floating type, on any device; not changed itself.
            seed: seed of all random numbers of this batch, such as ``(seed, rank, iteration)``.

        Returns:
            A new tensor of the same shape and type, or `images` if nothing changes.
        """
        generator = np.random.default_rng(seed)
        count = len(images)
        scale, offset = np.ones(count), np.zeros(count)
        for step in self.steps:
            part = getattr(step, "scaler", None) or getattr(step, "shifter", None)
            if part is None or part.channel_wise:
                if step.prob:
                    images, key = _linear(images, scale, offset).clone(), step.keys[0]
                    scale, offset = np.ones(count), np.zeros(count)
                    for index, number in enumerate(generator.integers(SEED_LIMIT, size=count)):
                        images[index] = step.set_random_state(int(number))({key: images[index]})[key]
                continue
            drawn = generator.random(count) < step.prob
            if isinstance(step, RandScaleIntensityd):
                low, high = step.scaler.factors
                factors = 1 + generator.uniform(low, high, count) * drawn
                scale, offset = scale * factors, offset * factors
            else:
                low, high = step.shifter.offsets
                offset = offset + generator.uniform(low, high, count) * drawn
        return _linear(images, scale, offset)


def _linear(images: torch.Tensor, scale: np.ndarray, offset: np.ndarray) -> torch.Tensor:
    if (scale == 1).all() and not offset.any():
        return images
    numbers = torch.as_tensor(np.stack([scale, offset]), dtype=images.dtype)
    numbers = numbers.pin_memory() if images.is_cuda else numbers  # a copy from other memory waits for the GPU
    a, b = numbers.to(images.device, non_blocking=True).reshape(2, len(images), *[1] * (images.ndim - 1))
    return torch.addcmul(b, images, a)
