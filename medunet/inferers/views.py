"""Test-time augmentation: the mean over mirrored or scaled views of an image."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch.nn.functional import interpolate

from medunet.errors import ConfigError
from medunet.networks import check_activation, to_logits, to_probabilities
from medunet.transforms import check_pairs, like, plain, swapped_channels

LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class ViewInferer(Inferer, ABC):
    """Average the probabilities of views; the mean is returned as logits, so a bundle's activation restores it."""

    def __init__(self, inferer: Inferer, activation: str) -> None:
        super().__init__()
        self.inferer = inferer
        self.activation = check_activation(activation, mean=True)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate all views: `(B, C, *spatial)` to logits `(B, classes, *spatial)`, float32."""
        image = plain(inputs)
        if not len(image):
            raise ConfigError("the batch has no image", received=tuple(inputs.shape))

        def evaluate(view: torch.Tensor) -> torch.Tensor:
            return to_probabilities(self.inferer(view, network, *args, **kwargs), self.activation)

        views = self._views(image, evaluate)
        total, count = next(views), 1
        for probabilities in views:
            total.add_(probabilities)
            count += 1
        return like(to_logits(total / count, self.activation), inputs)

    @abstractmethod
    def _views(self, image: torch.Tensor, evaluate: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the probabilities of each view, put back on the image; the tensors may be changed."""


class MirrorInferer(ViewInferer):
    """Average a network's probabilities over mirrored views; another inferer evaluates each view.

    Ronneberger et al. 2015 average the predictions of seven rotated views for the ISBI challenge (section 4). Both axes
    of a 2D image and `transpose` give the eight views of the dihedral group.

    Args:
        inferer: evaluates one view, for instance :class:`OverlapTileInferer`.
        axes: spatial axes that are mirrored, in all combinations: 2 ** len(axes) views.
        transpose: double the views by swapping the first two spatial axes.
        batch_size: views of one size that go to `inferer` in one batch, which an `OverlapTileInferer` splits by its own
            `batch_size`. More is faster for small images and takes more memory.
        activation: `softmax`, or `sigmoid` of each channel; `none` averages the logits, as nnU-Net does.
        swaps: pairs of channels that differ in left and right. They are swapped in views that are mirrored along
            the first axis, in RAS from left to right, because the network takes a left lung for a right one there.

    Raises:
        ConfigError: an axis that does not exist, a batch size below 1, invalid pairs, or swaps with `transpose`.

    Examples:
        >>> from monai.inferers import SimpleInferer
        >>> network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1)
        >>> inferer = MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True)
        >>> with torch.inference_mode():
        ...     inferer(torch.rand(1, 1, 5, 7), network).shape
        torch.Size([1, 2, 5, 7])
    """

    def __init__(
        self,
        inferer: Inferer,
        *,
        axes: Sequence[int],
        transpose: bool = False,
        batch_size: int = 1,
        activation: str = "softmax",
        swaps: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(inferer, activation)
        if swaps and transpose:
            raise ConfigError("swaps need transpose=False: no axis of a transposed view runs from left to right")
        if batch_size < 1:
            raise ConfigError("batch_size must be at least 1", received=batch_size)
        self.axes = tuple(axes)
        self.transpose = transpose
        self.batch_size = batch_size
        self.swaps = check_pairs(swaps)

    def _views(self, image: torch.Tensor, evaluate: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[torch.Tensor]:
        if any(not 0 <= axis < image.ndim - 2 for axis in self.axes):
            raise ConfigError(f"axes must be numbers from 0 to {image.ndim - 3}", received=self.axes)
        subsets = [s for count in range(len(self.axes) + 1) for s in itertools.combinations(self.axes, count)]
        flips = [[2 + axis for axis in axes] for axes in subsets]
        for swap in (False, True) if self.transpose else (False,):  # views of one size share a batch
            for start in range(0, len(flips), self.batch_size):
                part = flips[start : start + self.batch_size]
                batch = torch.cat([image.flip(dims) for dims in part])
                probabilities = evaluate(batch.transpose(2, 3) if swap else batch)
                probabilities = probabilities.transpose(2, 3) if swap else probabilities
                for dims, view in zip(part, probabilities.split(len(image)), strict=True):
                    swaps = self.swaps if 2 in dims else ()
                    yield (view[:, swapped_channels(swaps, view.shape[1])] if swaps else view).flip(dims)


class ScaleInferer(ViewInferer):
    """Average a network's probabilities over views of several sizes; another inferer evaluates each view.

    A smaller view shows more context and less noise: a faint membrane, barely darker than its surroundings, becomes a
    line. The network should have been trained with these sizes (`RandDeformd(scale_range=...)`).

    Args:
        inferer: evaluates one view, for instance :class:`OverlapTileInferer` or :class:`MirrorInferer`.
        scales: factors by which the image is scaled, for instance `[0.75, 1.0]`.
        activation: `softmax`, or `sigmoid` of each channel.

    Raises:
        ConfigError: no scale, or one that is not positive.

    Examples:
        >>> from monai.inferers import SimpleInferer
        >>> network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1)
        >>> with torch.inference_mode():
        ...     ScaleInferer(SimpleInferer(), scales=[0.75, 1.0])(torch.rand(1, 1, 33, 35), network).shape
        torch.Size([1, 2, 33, 35])
    """

    def __init__(self, inferer: Inferer, *, scales: Sequence[float], activation: str = "softmax") -> None:
        super().__init__(inferer, activation)
        if not scales or min(scales) <= 0:
            raise ConfigError("scales must be one or more positive factors", received=list(scales))
        self.scales = tuple(scales)

    def _views(self, image: torch.Tensor, evaluate: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[torch.Tensor]:
        size = list(image.shape[2:])
        for scale in self.scales:
            probabilities = evaluate(resized(image, [max(1, round(n * scale)) for n in size]))
            if list(probabilities.shape[2:]) != size:
                probabilities = interpolate(probabilities, size, mode=LINEAR_MODES[len(size)])
            yield probabilities


def resized(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Return an image `(B, C, *spatial)` of another size, interpolated linearly."""
    if list(image.shape[2:]) == size:
        return image
    if len(size) == 2:
        return interpolate(image, size, mode="bilinear", antialias=True)
    smaller = any(new < old for new, old in zip(size, image.shape[2:], strict=True))  # antialias is for 2D only
    return interpolate(image, size, mode="area" if smaller else LINEAR_MODES[len(size)])
