"""Test-time mirroring: the mean over mirrored (and, in the plane, transposed) views of the image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from medunet.errors import ConfigError

PROBABILITY_FLOOR = 1e-12
"""Below this a mean probability counts as zero, so that its logarithm stays finite."""


class MirrorInferer(Inferer):
    """Average a softmax network's probabilities over mirrored views; another inferer evaluates each view.

    Ronneberger et al. 2015 average the predictions of seven rotated views for the ISBI challenge (section 4). With both
    axes of a 2D image and `transpose` these are the eight views of the dihedral group. The mean of the probabilities is
    returned as its logarithm, so that the softmax of a bundle's postprocessing gives it back.

    Args:
        inferer: evaluates one view, for instance :class:`OverlapTileInferer`.
        axes: spatial axes that are mirrored, in all combinations: 2 ** len(axes) views.
        transpose: double the views by swapping the first two spatial axes.

    Raises:
        ConfigError: no such axis.

    Example:
        >>> from monai.inferers import SimpleInferer
        >>> network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1)
        >>> inferer = MirrorInferer(SimpleInferer(), axes=[0, 1], transpose=True)
        >>> with torch.inference_mode():
        ...     inferer(torch.rand(1, 1, 5, 7), network).shape
        torch.Size([1, 2, 5, 7])
    """

    def __init__(self, inferer: Inferer, *, axes: Sequence[int], transpose: bool = False) -> None:
        super().__init__()
        self.inferer = inferer
        self.axes = tuple(axes)
        self.transpose = transpose

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate all views: `(B, C, *spatial)` to log-probabilities `(B, classes, *spatial)`, float32."""
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if any(not 0 <= axis < image.ndim - 2 for axis in self.axes):
            raise ConfigError(
                "no such axis to mirror", received=self.axes, expected=f"numbers from 0 to {image.ndim - 3}"
            )
        total: torch.Tensor | None = None
        views = 0
        for flips, swap in itertools.product(_subsets(self.axes), (False, True) if self.transpose else (False,)):
            dims = [2 + axis for axis in flips]
            view = image.flip(dims)
            logits = self.inferer(view.transpose(2, 3) if swap else view, network, *args, **kwargs)
            probabilities = torch.softmax(logits.float(), dim=1)
            probabilities = (probabilities.transpose(2, 3) if swap else probabilities).flip(dims)
            total = probabilities if total is None else total.add_(probabilities)
            views += 1
        if total is None:
            raise ConfigError("no view to evaluate")
        output = (total / views).clamp_min(PROBABILITY_FLOOR).log()
        return MetaTensor(output).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else output


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [subset for count in range(len(axes) + 1) for subset in itertools.combinations(axes, count)]
