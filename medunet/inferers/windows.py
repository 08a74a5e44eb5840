"""Windows of an image."""

from collections.abc import Sequence

import torch

from medunet.runtime.cuda import upload


def mirrored(start: int, stop: int, size: int) -> torch.Tensor:
    """Return the voxel to read for each position from `start` to `stop` along an axis of `size` voxels.

    Positions outside the image are mirrored at its edge, which is not repeated. torch's own reflection ends after one
    image width; the margin of a deep valid network (92 voxels for the 2015 network) may be wider.

    Examples:
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


def take_window(image: torch.Tensor, window: Sequence[slice], margin: Sequence[int]) -> torch.Tensor:
    """Return a window of an image `(B, C, *spatial)`, mirrored where it exceeds the image.

    The padded image is never built; a window inside the image is a view. `window` counts from `margin` voxels before
    the image.
    """
    sources: list[tuple[int, torch.Tensor]] = []
    for axis, (span, before) in enumerate(zip(window, margin, strict=True), start=2):
        begin, end = span.start - before, span.stop - before
        first, last = max(begin, 0), min(end, image.shape[axis])
        if (first, last) != (begin, end):
            source = mirrored(begin, end, image.shape[axis])
            first, last = int(source.min()), int(source.max()) + 1
            sources.append((axis, source - first))
        image = image.narrow(axis, first, last - first)
    for axis, source in sources:  # only after every axis is narrow, because index_select copies
        image = image.index_select(axis, upload(source, image.device))
    return image
