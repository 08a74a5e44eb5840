"""Overlap of two masks: Dice, IoU and volume.

Every table that medunet writes treats empty masks in this way:

| reference | prediction | status     | Dice, IoU | surface distances |
| --------- | ---------- | ---------- | --------- | ----------------- |
| present   | present    | `both`     | number    | number            |
| present   | empty      | `missed`   | 0         | NaN               |
| empty     | present    | `spurious` | 0         | NaN               |
| empty     | empty      | `absent`   | NaN       | NaN               |

Means leave NaN out and are given with their number of cases. A class that is rightly absent says nothing about overlap:
counted as 1.0, it would make a data set of many empty cases look solved (nnU-Net leaves it out, too). A distance to a
surface that does not exist is not a number of millimetres; missed and spurious cases are counted beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from .arrays import ArrayOrTensor, as_pair, checked_spacing

Status: TypeAlias = Literal["both", "missed", "spurious", "absent"]

MM3_PER_ML = 1000.0


def dice(pred: ArrayOrTensor, ref: ArrayOrTensor) -> float:
    """Return the Dice coefficient 2|A n B| / (|A| + |B|) of two masks `(*spatial)`; NaN if both are empty.

    Example:
        >>> dice(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 1]))  # 2 * 1 / (2 + 3)
        0.4
    """
    return dice_from_counts(*_counts(pred, ref))


def iou(pred: ArrayOrTensor, ref: ArrayOrTensor) -> float:
    """Return the intersection over union |A n B| / |A u B| of two masks `(*spatial)`; NaN if both are empty.

    Example:
        >>> iou(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 1]))  # 1 / 4
        0.25
    """
    return iou_from_counts(*_counts(pred, ref))


def dice_from_counts(in_pred: int, in_ref: int, in_both: int) -> float:
    """Return Dice from the numbers of voxels in the prediction, the reference and both."""
    return 2 * in_both / (in_pred + in_ref) if in_pred + in_ref else math.nan


def iou_from_counts(in_pred: int, in_ref: int, in_both: int) -> float:
    """Return IoU from the numbers of voxels in the prediction, the reference and both."""
    return in_both / (in_pred + in_ref - in_both) if in_pred + in_ref else math.nan


def status_from_counts(in_pred: int, in_ref: int) -> Status:
    """Return which of two masks is not empty (the table at the top of this file)."""
    if in_ref:
        return "both" if in_pred else "missed"
    return "spurious" if in_pred else "absent"


def volume_ml(voxels: int, *, spacing_mm: Sequence[float]) -> float:
    """Return the volume of a number of voxels in millilitres.

    Example:
        >>> volume_ml(1000, spacing_mm=(0.5, 0.5, 4.0))
        1.0
    """
    return voxels * math.prod(checked_spacing(spacing_mm, spatial_dims=3)) / MM3_PER_ML


def area_mm2(pixels: int, *, spacing_mm: Sequence[float]) -> float:
    """Return the area of a number of pixels in square millimetres.

    Example:
        >>> area_mm2(10, spacing_mm=(0.5, 0.5))
        2.5
    """
    return pixels * math.prod(checked_spacing(spacing_mm, spatial_dims=2))


def _counts(pred: ArrayOrTensor, ref: ArrayOrTensor) -> tuple[int, int, int]:
    pred_array, ref_array = as_pair(pred, ref)
    pred_mask, ref_mask = pred_array != 0, ref_array != 0
    in_pred, in_ref, in_both = (int(np.count_nonzero(mask)) for mask in (pred_mask, ref_mask, pred_mask & ref_mask))
    return in_pred, in_ref, in_both
