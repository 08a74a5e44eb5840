"""Copying voxels between the file's order (first axis fastest) and ours (last axis fastest)."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

_SLAB = 16  # positions of the last axis copied at a time, so that both sides of the transposition stay in cache lines
_BLOCK_BYTES = 1 << 20  # scratch block through which a volume is transposed: it fits the second-level cache
_LINE_BYTES = 64  # a cache line

_THREADS = min(4, os.cpu_count() or 1)  # numpy releases the GIL while it copies; more threads wait for memory


def copy_in_order(
    source: npt.NDArray[Any], *, dtype: npt.DTypeLike, order: Literal["C", "F"] = "C"
) -> npt.NDArray[Any]:
    """Return a contiguous copy of `source` in a type and an order: 'C' for the last axis fastest, 'F' for the first."""
    if source.ndim == 3 and order == "C" and source.T.flags.c_contiguous:
        return transpose(source.T, dtype=dtype)
    if source.ndim == 3 and order == "F" and source.flags.c_contiguous:
        return transpose(source, dtype=dtype).T
    target = np.empty(source.shape, dtype=dtype, order=order)
    for start in range(0, source.shape[-1], _SLAB):
        target[..., start : start + _SLAB] = source[..., start : start + _SLAB]
    return target


def transpose(
    source: npt.NDArray[Any], *, dtype: npt.DTypeLike, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Return a C-ordered copy of a C-ordered 3D array's transpose, or copy it into `out`.

    A chest CT takes a fifth of the time that numpy needs.
    """
    planes, rows, columns = source.shape
    target = np.empty((columns, rows, planes), dtype=dtype) if out is None else out
    # Rows and planes of the block are one cache line apart: voxels at distances of a power of two (slices of 512 x 512)
    # would share few places of the cache.
    gap = max(1, _LINE_BYTES // target.itemsize)
    pitch = columns + gap
    at_once = min(rows, max(1, _BLOCK_BYTES // (planes * pitch * target.itemsize)))

    def move(starts: range) -> None:
        flat = np.empty((planes, at_once * pitch + gap), dtype=target.dtype)
        block = flat[:, : at_once * pitch].reshape(planes, at_once, pitch)[..., :columns]
        for start in starts:
            part = block[:, : min(at_once, rows - start)]
            part[...] = source[:, start : start + at_once]
            target[:, start : start + at_once] = part.T

    starts = range(0, rows, at_once)
    if len(starts) < 2:
        move(starts)
        return target
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(move, (starts[n::_THREADS] for n in range(min(_THREADS, len(starts))))))
    return target
