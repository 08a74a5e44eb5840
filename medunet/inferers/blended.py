"""Windows that overlap and are blended, in the places and with the weights of nnU-Net."""

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from scipy.ndimage import gaussian_filter
from torch.nn.functional import pad

from medunet.errors import ConfigError
from medunet.networks import only_tensor
from medunet.transforms import like, plain

SIGMA = 1 / 8  # of the Gaussian weights, in window sizes
PEAK = 10.0  # of the weights, so that float16 represents those at the corners


class BlendedInferer(Inferer):
    """Blend the logits of overlapping windows with Gaussian weights, exactly as nnU-Net 2 does.

    Sums are float16, as nnU-Net's, so that ties are decided alike. Images smaller than a window are padded with zeros
    on both sides. A network with batch norm or none needs no blending: :class:`OverlapTileInferer` is exact and faster.

    Args:
        roi_size: voxels of a window per axis of the network.
        axis_order: axes of the image, slowest first, in which windows follow one another. Default: the last one is
            fastest.
        slice_axis: axis of the image along which a 2D network takes slices; None if it sees all axes.
        window_inferer: evaluates a batch of windows, such as :class:`MirrorInferer` on a `SimpleInferer`.
        batch_size: windows per call of the network.
        overlap: of neighbouring windows, from 0 to less than 1.

    Raises:
        ConfigError: an invalid option.

    Examples:
        >>> network = torch.nn.Conv2d(1, 2, kernel_size=3, padding=1)
        >>> with torch.inference_mode():
        ...     BlendedInferer((16, 16))(torch.rand(1, 1, 33, 12), network).shape
        torch.Size([1, 2, 33, 12])
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *,
        axis_order: Sequence[int] | None = None,
        slice_axis: int | None = None,
        window_inferer: Inferer | None = None,
        batch_size: int = 1,
        overlap: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise ConfigError("overlap must be in [0, 1)", received=overlap)
        self.roi_size = tuple(roi_size)
        self.axis_order = tuple(range(len(self.roi_size)) if axis_order is None else axis_order)
        if sorted(self.axis_order) != list(range(len(self.roi_size))):
            raise ConfigError("axis_order must be a permutation of the axes", received=list(self.axis_order))
        self.slice_axis = slice_axis
        self.window_inferer = window_inferer or SimpleInferer()
        self.batch_size = batch_size
        self.overlap = overlap

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Evaluate `network` on `inputs` `(B, C, *spatial)`; returns `(B, classes, *spatial)`, float16."""
        images = plain(inputs)
        slices = images if self.slice_axis is None else images.movedim(2 + self.slice_axis, 1)
        batch = images if self.slice_axis is None else slices.flatten(0, 1)
        count = getattr(network, "member_count", 1)
        logits = self._blended(batch, network, *args, **kwargs, **({"member": 0} if count > 1 else {}))
        for member in range(1, count):  # one after the other, as nnU-Net does, because the sums are rounded
            logits += self._blended(batch, network, *args, **kwargs, member=member)
        logits = logits / count if count > 1 else logits
        if self.slice_axis is not None:
            logits = logits.unflatten(0, slices.shape[:2]).movedim(1, 2 + self.slice_axis)
        return like(logits, inputs)

    def _blended(self, images: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        size = images.shape[2:]
        if len(size) != len(self.roi_size):
            raise ConfigError("roi_size must have one number per axis", received=self.roi_size, expected=len(size))
        missing = [max(0, window - n) for window, n in zip(self.roi_size, size, strict=True)]
        sides = [(n // 2, n - n // 2) for n in missing]
        padded = pad(images, [n for side in reversed(sides) for n in side]) if any(missing) else images
        windows = window_places(padded.shape[2:], self.roi_size, self.overlap, self.axis_order)
        weights = torch.from_numpy(_weights(self.roi_size)).to(images.device)
        total = torch.zeros(padded.shape[2:], dtype=torch.float16, device=images.device)
        for window in windows:
            total[window] += weights
        logits: torch.Tensor | None = None
        places: list[Any] = [(index, slice(None), *window) for index in range(len(images)) for window in windows]
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            parts = torch.stack([padded[place] for place in batch])
            output = only_tensor(self.window_inferer(parts, network, *args, **kwargs)).float() * weights
            if logits is None:
                shape = (len(images), output.shape[1], *padded.shape[2:])
                logits = torch.zeros(shape, dtype=torch.float16, device=images.device)
            for place, part in zip(batch, output, strict=True):
                logits[place] += part
        if logits is None:
            raise ConfigError("the batch has no image", received=tuple(images.shape))
        inner: Any = (..., *(slice(before, before + n) for (before, _), n in zip(sides, size, strict=True)))
        logits /= total
        return logits[inner]


def window_places(
    size: Sequence[int], window: Sequence[int], overlap: float, order: Sequence[int]
) -> list[tuple[slice, ...]]:
    """Return windows that are spread evenly over an image at least as large, the last axis of `order` fastest.

    Examples:
        >>> [part.start for (part,) in window_places([110], [64], 0.5, [0])]
        [0, 23, 46]
    """
    starts = []
    for n, w in zip(size, window, strict=True):
        steps = int(np.ceil((n - w) / (w * (1 - overlap))))
        starts.append([int(np.round((n - w) / steps * k)) for k in range(steps + 1)] if steps else [0])
    places = []
    for chosen in itertools.product(*(starts[axis] for axis in order)):
        by_axis = dict(zip(order, chosen, strict=True))
        places.append(tuple(slice(by_axis[axis], by_axis[axis] + window[axis]) for axis in range(len(window))))
    return places


@lru_cache(maxsize=2)
def _weights(size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return Gaussian weights, float16; where they vanish, their smallest positive value."""
    weights = np.zeros(size)
    weights[tuple(n // 2 for n in size)] = 1
    weights = gaussian_filter(weights, [n * SIGMA for n in size], mode="constant")
    halves = (weights / weights.max() * PEAK).astype(np.float16)
    halves[halves == 0] = halves[halves > 0].min()
    return halves
