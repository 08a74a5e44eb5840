"""Overlap of two masks.

Every table that medunet writes treats empty masks in this way:

| reference | prediction | status     | Dice, IoU | surface distances |
| --------- | ---------- | ---------- | --------- | ----------------- |
| present   | present    | `both`     | number    | number            |
| present   | empty      | `missed`   | 0         | NaN               |
| empty     | present    | `spurious` | 0         | NaN               |
| empty     | empty      | `absent`   | NaN       | NaN               |

Means leave NaN out and are given with their number of cases. A class that is rightly absent says nothing about overlap:
counted as 1.0, it would make a data set of many empty cases look solved (nnU-Net leaves it out, too).
"""

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np

from .arrays import Array, ArrayOrTensor, as_pair

Status: TypeAlias = Literal["both", "missed", "spurious", "absent"]


def dice(pred: ArrayOrTensor, ref: ArrayOrTensor) -> float:
    """Return the Dice coefficient 2|A n B| / (|A| + |B|) of two masks `(*spatial)`; NaN if both are empty.

    Examples:
        >>> dice(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 1]))  # 2 * 1 / (2 + 3)
        0.4
    """
    pred_array, ref_array = as_pair(pred, ref)
    return dice_from_counts(*count_voxels(pred_array != 0, ref_array != 0))


def count_voxels(pred: Array, ref: Array) -> tuple[int, int, int]:
    """Return the numbers of voxels in the prediction, the reference and both."""
    in_pred, in_ref, in_both = (int(np.count_nonzero(mask)) for mask in (pred, ref, pred & ref))
    return in_pred, in_ref, in_both


def mean_of_known(numbers: Iterable[float]) -> float:
    """Return the mean without NaN, or NaN if there is no number."""
    known = [number for number in numbers if not math.isnan(number)]
    return float(np.mean(known)) if known else math.nan


def dice_from_counts(in_pred: float, in_ref: float, in_both: float) -> float:
    """Return Dice from the numbers of voxels in the prediction, the reference and both."""
    return 2 * in_both / (in_pred + in_ref) if in_pred + in_ref else math.nan


def iou_from_counts(in_pred: int, in_ref: int, in_both: int) -> float:
    """Return the intersection over union from the numbers of voxels in the prediction, the reference and both."""
    return in_both / (in_pred + in_ref - in_both) if in_pred + in_ref else math.nan


def status_from_counts(in_pred: int, in_ref: int) -> Status:
    """Return which of two masks is not empty."""
    if in_ref:
        return "both" if in_pred else "missed"
    return "spurious" if in_pred else "absent"
