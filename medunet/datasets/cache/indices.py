"""Voxels that patches may be centred on, and labels in small integers."""

from typing import Any

import numpy as np
import torch

from medunet.transforms import IGNORE_INDEX, like, plain

MAX_INDICES = 10_000  # foreground voxels that are listed per class and case (40 kB); larger classes are sampled


def foreground_indices(label: torch.Tensor | np.ndarray, *, limit: int = MAX_INDICES) -> list[np.ndarray]:
    """Return flat indices of the voxels of each foreground class, in ascending order.

    Args:
        label: class indices `(1, *spatial)`, of which 0 and `IGNORE_INDEX` are not foreground; or one structure per
            channel, `(C, *spatial)`.
        limit: number of voxels per class; larger classes are sampled, the same way every time.

    Returns:
        One array per class of the label, in ascending order of classes, or one per nonempty channel.

    Examples:
        >>> [one.tolist() for one in foreground_indices(np.array([[[0, 2, 1], [1, 255, 2]]]))]
        [[2, 3], [1, 5]]
    """
    rows = [row.reshape(-1) for row in plain(label).cpu().numpy()]
    if len(rows) == 1 and rows[0].max(initial=0) > IGNORE_INDEX:  # numbers of objects, which may be many
        rows[0] = rows[0] > 0
    flat = [np.flatnonzero((row > 0) & (row != IGNORE_INDEX)) for row in rows]
    if len(rows) == 1:
        values = rows[0][flat[0]]
        order = np.argsort(values, kind="stable")
        bounds = np.flatnonzero(np.diff(values[order])) + 1
        flat = np.split(flat[0][order], bounds)
    generator = np.random.default_rng(0)
    return [_sample(one, limit, generator) for one in flat if len(one)]


def annotated_indices(label: torch.Tensor | np.ndarray, *, limit: int = MAX_INDICES) -> np.ndarray:
    """Return flat indices of annotated voxels, at most `limit`, in ascending order; empty if all are annotated."""
    values = plain(label)[0].cpu().numpy().ravel()
    annotated = values != IGNORE_INDEX
    if annotated.all() or values.max() > IGNORE_INDEX:  # greater values are numbers of objects
        return np.empty(0, dtype=np.int64)
    return _sample(np.flatnonzero(annotated), limit, np.random.default_rng(0))


def _sample(indices: np.ndarray, limit: int, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.choice(indices, limit, replace=False)) if len(indices) > limit else indices


def smallest_integers(label: Any) -> Any:
    """Return a label in the smallest integer type that fits, if it has only whole numbers."""
    values = plain(label)
    if not values.numel() or values.dtype in (torch.uint8, torch.bool) or values.is_complex():
        return label
    if values.is_floating_point() and not bool((values == values.round()).all()):
        return label  # NaN is never equal to itself, infinity fails the range below
    low, high = float(values.min()), float(values.max())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return values.to(dtype).numpy() if isinstance(label, np.ndarray) else like(values.to(dtype), label)
    return label
