"""Test-time mirroring: the mean over mirrored (and, in the plane, transposed) views of the image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer

from medunet.errors import ConfigError
from medunet.networks import check_activation, to_logits, to_probabilities
from medunet.transforms import check_pairs, like, plain, swapped_channels


class MirrorInferer(Inferer):
    """Average a network's probabilities over mirrored views; another inferer evaluates each view.

    Ronneberger et al. 2015 average the predictions of seven rotated views for the ISBI challenge (section 4). With both
    axes of a 2D image and `transpose` these are the eight views of the dihedral group. The mean of the probabilities is
    returned as logits, so that the activation of a bundle's postprocessing gives it back.

    Args:
        inferer: evaluates one view, for instance :class:`OverlapTileInferer`.
        axes: spatial axes that are mirrored, in all combinations: 2 ** len(axes) views.
        transpose: double the views by swapping the first two spatial axes.
        batch_size: views that go to `inferer` in one batch, where they have one size; an `OverlapTileInferer` then
            takes its own `batch_size` of windows from it. More is faster for small images and takes more memory.
        activation: `softmax`, or `sigmoid` of each channel.
        swaps: pairs of channels that differ in left and right: they trade places in views that are mirrored along
            `swap_axis`, for there the network takes a left lung for a right one.
        swap_axis: the spatial axis from left to right, in volumes that were turned to RAS the first.

    Raises:
        ConfigError: no such axis, an impossible batch size, or swaps that are no pairs or combined with `transpose`.

    Example:
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
        swap_axis: int = 0,
    ) -> None:
        super().__init__()
        if swaps and transpose:
            raise ConfigError("no axis runs from left to right in views that are transposed", received=list(swaps))
        if batch_size < 1:
            raise ConfigError("impossible batch_size", received=batch_size, expected="1 or more")
        self.inferer = inferer
        self.axes = tuple(axes)
        self.transpose = transpose
        self.batch_size = batch_size
        self.activation = check_activation(activation)
        self.swaps = check_pairs(swaps)
        self.swap_axis = swap_axis

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate all views: `(B, C, *spatial)` to logits `(B, classes, *spatial)`, float32."""
        image = plain(inputs)
        if any(not 0 <= axis < image.ndim - 2 for axis in self.axes):
            raise ConfigError(
                "no such axis to mirror", received=self.axes, expected=f"numbers from 0 to {image.ndim - 3}"
            )
        total: torch.Tensor | None = None
        views = list(itertools.product((False, True) if self.transpose else (False,), _subsets(self.axes)))
        for swap, group in itertools.groupby(views, key=lambda view: view[0]):  # one size a group
            flips = [[2 + axis for axis in axes] for _, axes in group]
            for start in range(0, len(flips), self.batch_size):
                part = flips[start : start + self.batch_size]
                batch = torch.cat([image.flip(dims) for dims in part])
                logits = self.inferer(batch.transpose(2, 3) if swap else batch, network, *args, **kwargs)
                probabilities = to_probabilities(logits, self.activation)
                probabilities = probabilities.transpose(2, 3) if swap else probabilities
                for dims, view in zip(part, probabilities.split(len(image)), strict=True):
                    straight = self._sides_restored(view, dims).flip(dims)
                    total = straight if total is None else total.add_(straight)
        if total is None:
            raise ConfigError("batch holds no image", received=tuple(inputs.shape), expected="(B, C, *spatial), B >= 1")
        output = to_logits(total / len(views), self.activation)
        return like(output, inputs)

    def _sides_restored(self, view: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
        if not self.swaps or 2 + self.swap_axis not in dims:
            return view
        return view[:, swapped_channels(self.swaps, view.shape[1])]


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [subset for count in range(len(axes) + 1) for subset in itertools.combinations(axes, count)]
