"""Test-time scaling: the mean over views of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer

from medunet.errors import ConfigError
from medunet.networks import check_activation, to_logits, to_probabilities
from medunet.transforms import like, plain

LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class ScaleInferer(Inferer):
    """Average a network's probabilities over views of several sizes; another inferer evaluates each view.

    A smaller view shows more around a voxel and less noise: a faint membrane that is hardly darker than its
    neighbourhood becomes a line. The network should have seen these sizes (`RandDeformd(scale_range=...)`). The mean of
    the probabilities is returned as logits, so that the activation of a bundle's postprocessing gives it back.

    Args:
        inferer: evaluates one view, for instance :class:`OverlapTileInferer` or :class:`MirrorInferer`.
        scales: factors to the size of the image, for instance `[0.75, 1.0]`.
        activation: `softmax`, or `sigmoid` of each channel.

    Raises:
        ConfigError: no scale, or one that is not positive.

    Example:
        >>> from monai.inferers import SimpleInferer
        >>> network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1)
        >>> with torch.inference_mode():
        ...     ScaleInferer(SimpleInferer(), scales=[0.75, 1.0])(torch.rand(1, 1, 33, 35), network).shape
        torch.Size([1, 2, 33, 35])
    """

    def __init__(self, inferer: Inferer, *, scales: Sequence[float], activation: str = "softmax") -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ConfigError("impossible scales", received=list(scales), expected="one positive factor or more")
        self.inferer = inferer
        self.scales = tuple(scales)
        self.activation = check_activation(activation)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate all views: `(B, C, *spatial)` to logits `(B, classes, *spatial)`, float32."""
        image = plain(inputs)
        size = image.shape[2:]
        views = []
        for scale in self.scales:
            view = _resized(image, [max(1, round(n * scale)) for n in size])
            probabilities = to_probabilities(self.inferer(view, network, *args, **kwargs), self.activation)
            if probabilities.shape[2:] != size:
                probabilities = torch.nn.functional.interpolate(probabilities, list(size), mode=LINEAR_MODES[len(size)])
            views.append(probabilities)
        output = to_logits(sum(views[1:], views[0]) / len(views), self.activation)
        return like(output, inputs)


def _resized(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if list(image.shape[2:]) == list(size):
        return image
    if len(size) == 2:
        return torch.nn.functional.interpolate(image, list(size), mode="bilinear", antialias=True)
    smaller = any(new < old for new, old in zip(size, image.shape[2:], strict=True))  # no antialias but in the plane
    return torch.nn.functional.interpolate(image, list(size), mode="area" if smaller else LINEAR_MODES[len(size)])
