"""Windows that reach beyond the image: which voxel stands for one that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F

PaddingMode = Literal["reflect", "constant", "replicate"]
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)


def source_indices(start: int, stop: int, size: int, *, mode: PaddingMode = "reflect") -> torch.Tensor:
    """Voxel of the image that stands for each position from `start` to `stop` along one axis.

    torch's own reflection stops at one image width; the margin of a deep valid network (92 voxels for the 2015 network)
    may be wider than the image, so the reflection goes on, back and forth, as between two mirrors.

    Args:
        start: first position; negative before the image.
        stop: one past the last position.
        size: voxels of the image along the axis.
        mode: "reflect" (the edge voxel is not repeated) or "replicate"; "constant" has no source outside the image.

    Example:
        >>> source_indices(-4, 6, 3).tolist()  # voxels 0 1 2
        [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]
        >>> source_indices(-2, 5, 3, mode="replicate").tolist()
        [0, 0, 0, 1, 2, 2, 2]
        >>> source_indices(-1, 2, 1).tolist()  # an axis one voxel thick has nothing else to show
        [0, 0, 0]
    """
    positions = torch.arange(start, stop)
    if mode == "replicate" or size == 1:
        return positions.clamp(0, size - 1)
    period = 2 * (size - 1)
    phase = positions.remainder(period)
    return torch.minimum(phase, period - phase)


def take_window(
    image: torch.Tensor, start: Sequence[int], stop: Sequence[int], *, mode: PaddingMode = "reflect"
) -> torch.Tensor:
    """Cut a window out of an image of shape `(B, C, *spatial)`, inventing only the voxels that lie outside it.

    The padded image is never built: memory is that of the window, and a window inside the image is a view.

    Args:
        image: `(B, C, *spatial)`.
        start: first position per spatial axis, in voxels of the image; may be negative.
        stop: one past the last position per spatial axis; may exceed the image.
        mode: how positions outside the image are filled; "constant" is zero.

    Returns:
        `(B, C, *(stop - start))`.
    """
    fill: list[int] = []
    mirrored: list[tuple[int, torch.Tensor]] = []
    for axis, (begin, end) in enumerate(zip(start, stop, strict=True), start=2):
        size = image.shape[axis]
        first, last = max(begin, 0), min(end, size)
        fill = [first - begin, end - last, *fill]  # F.pad counts axes from the last
        if mode != "constant" and (first, last) != (begin, end):
            source = source_indices(begin, end, size, mode=mode)
            first, last = int(source.min()), int(source.max()) + 1
            mirrored.append((axis, source - first))
        image = image.narrow(axis, first, last - first)
    # Only now, when every axis is narrow: index_select copies.
    for axis, source in mirrored:
        image = image.index_select(axis, source.to(image.device))
    return F.pad(image, fill) if mode == "constant" and any(fill) else image
