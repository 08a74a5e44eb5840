"""Checked numpy arrays of equal shape from arrays and tensors, and bounding boxes of masks."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from medunet.errors import GeometryError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
ArrayOrTensor: TypeAlias = Array | torch.Tensor


def as_array(values: ArrayOrTensor, *, spatial_dims: int | None = None) -> Array:
    """Return `values` on the CPU, without a channel axis of length 1 if it has one axis more than `spatial_dims`."""
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
    one, other = as_array(pred, spatial_dims=spatial_dims), as_array(ref, spatial_dims=spatial_dims)
    if one.shape != other.shape:
        cause = "prediction and reference have different shapes"
        raise GeometryError(cause, received=one.shape, expected=other.shape)
    return one, other


def checked_spacing(spacing_mm: Sequence[float], *, spatial_dims: int) -> tuple[float, ...]:
    """Return the spacing as floats; anything but one positive finite number per axis is a GeometryError."""
    spacing = tuple(float(value) for value in spacing_mm)
    if len(spacing) != spatial_dims or not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise GeometryError(f"spacing_mm must be {spatial_dims} positive numbers, one per axis", received=spacing)
    return spacing


def bounding_box(mask: Array) -> tuple[slice, ...] | None:
    """Return the smallest box around all true elements, or None without any true element."""
    axes = range(mask.ndim)
    hits = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits) if hits[0].size else None
