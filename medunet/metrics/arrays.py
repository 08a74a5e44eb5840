"""Arrays and tensors as checked numpy arrays of one shape, and boxes around what is not empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from medunet.errors import GeometryError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
ArrayOrTensor: TypeAlias = Array | torch.Tensor


def as_array(values: ArrayOrTensor, *, spatial_dims: int | None = None) -> Array:
    """Return `values` as a numpy array on the CPU, without its channel axis if it has one of length 1.

    Args:
        values: numpy array, tensor or MetaTensor, `(*spatial)` or `(1, *spatial)`, on any device.
        spatial_dims: how many axes the result must have; None keeps the axes as they are.

    Raises:
        GeometryError: the number of axes is neither `spatial_dims` nor one more with a channel axis of length 1.

    Example:
        >>> as_array(torch.zeros(1, 4, 5), spatial_dims=2).shape
        (4, 5)
    """
    # .as_subclass: a MetaTensor would update its metadata in every operation below
    array = values.detach().cpu().as_subclass(torch.Tensor).numpy() if isinstance(values, torch.Tensor) else values
    array = np.asarray(array)
    if spatial_dims is None or array.ndim == spatial_dims:
        return array
    if array.ndim == spatial_dims + 1 and array.shape[0] == 1:
        return array[0]
    expected = f"{spatial_dims} axes, or one more with a channel axis of length 1"
    raise GeometryError("array must have the image's axes", received=array.shape, expected=expected)


def as_pair(pred: ArrayOrTensor, ref: ArrayOrTensor, *, spatial_dims: int | None = None) -> tuple[Array, Array]:
    """Return prediction and reference as arrays; different shapes are a GeometryError."""
    pred_array, ref_array = as_array(pred, spatial_dims=spatial_dims), as_array(ref, spatial_dims=spatial_dims)
    if pred_array.shape != ref_array.shape:
        raise GeometryError(
            "prediction and reference have different shapes",
            received=pred_array.shape,
            expected=ref_array.shape,
            remedy="resample the prediction to the reference's grid",
        )
    return pred_array, ref_array


def checked_spacing(spacing_mm: Sequence[float], *, spatial_dims: int) -> tuple[float, ...]:
    """Return the spacing as floats; anything but one positive finite number per axis is a GeometryError."""
    spacing = tuple(float(value) for value in spacing_mm)
    if len(spacing) != spatial_dims or not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise GeometryError(f"spacing_mm must be {spatial_dims} positive numbers, one per axis", received=spacing)
    return spacing


def bounding_box(mask: Array) -> tuple[slice, ...] | None:
    """Return the smallest box around all true elements, or None if there are none.

    Example:
        >>> bounding_box(np.array([[0, 0, 0, 0], [0, 1, 1, 0]], dtype=bool))
        (slice(1, 2, None), slice(1, 3, None))
    """
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if hit.size == 0:
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)
