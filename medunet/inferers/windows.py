"""Windows of an image, and what a network computes for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from medunet.errors import ConfigError

from .tiling import Tile, TilePlan


def mirrored(start: int, stop: int, size: int) -> torch.Tensor:
    """Return the voxel that stands for each position from `start` to `stop` along an axis of `size` voxels.

    Positions outside the image are mirrored at its edge, which is not repeated. torch's own reflection ends after one
    image width; the margin of a deep valid network (92 voxels for the 2015 network) may be wider, so the reflection
    continues back and forth.

    Example:
        >>> mirrored(-4, 6, 3).tolist()
        [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]
        >>> mirrored(-1, 2, 1).tolist()  # an axis of one voxel has no other
        [0, 0, 0]
    """
    positions = torch.arange(start, stop)
    if size == 1:
        return torch.zeros_like(positions)
    period = 2 * (size - 1)
    phase = positions.remainder(period)
    return torch.minimum(phase, period - phase)


def take_window(image: torch.Tensor, start: Sequence[int], stop: Sequence[int]) -> torch.Tensor:
    """Return a window of an image `(B, C, *spatial)`, mirrored where it exceeds the image.

    The padded image is never built; a window inside the image is a view.

    Args:
        image: `(B, C, *spatial)`.
        start: first position per spatial axis, in voxels of the image; may be negative.
        stop: one past the last position per spatial axis; may exceed the image.
    """
    sources: list[tuple[int, torch.Tensor]] = []
    for axis, (begin, end) in enumerate(zip(start, stop, strict=True), start=2):
        first, last = max(begin, 0), min(end, image.shape[axis])
        if (first, last) != (begin, end):
            source = mirrored(begin, end, image.shape[axis])
            first, last = int(source.min()), int(source.max()) + 1
            sources.append((axis, source - first))
        image = image.narrow(axis, first, last - first)
    for axis, source in sources:  # only after every axis is narrow, because index_select copies
        image = image.index_select(axis, source.to(image.device))
    return image


def unwrap(network: Any) -> Any:
    """Return the network with `shapes` behind torch.compile (`_orig_mod`) and DistributedDataParallel (`module`)."""
    while not hasattr(network, "shapes"):
        inner = getattr(network, "_orig_mod", None) or getattr(network, "module", None)
        if inner is None:
            break
        network = inner
    return network


def check_output(logits: torch.Tensor, tile: Tile, plan: TilePlan) -> None:
    """Raise ConfigError unless the logits of a tile have the size that its plan expects."""
    expected = tuple(n - 2 * margin for n, margin in zip(tile.window_size, plan.margin, strict=True))
    if tuple(logits.shape[2:]) != expected:
        raise ConfigError(
            f"network returned another size than its shapes promise for a window of {tile.window_size}",
            received=tuple(logits.shape[2:]),
            expected=expected,
            remedy="use a network with the attribute `shapes`, or one whose output is as large as its input",
        )


def empty_output(image: torch.Tensor, logits: torch.Tensor, *, device: torch.device | str | None) -> torch.Tensor:
    """Allocate the stitched output, at least float32: softmax and resampling lose digits in half precision."""
    is_float = logits.dtype.is_floating_point
    dtype = torch.promote_types(logits.dtype, torch.float32) if is_float else logits.dtype
    size = (len(image), len(logits), *image.shape[2:])
    return torch.empty(size, dtype=dtype, device=image.device if device is None else device)
