from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import GeometryError
from medunet.metrics import dice, iou
from medunet.metrics.overlap import area_mm2, volume_ml


def test_dice_and_iou_are_counted_by_hand() -> None:
    pred, ref = np.zeros((33, 34), bool), np.zeros((33, 34), bool)
    pred[0:4, 0:5] = True  # 20 pixels
    ref[2:6, 0:5] = True  # 20 pixels, 10 of them shared
    assert (dice(pred, ref), iou(pred, ref)) == (20 / 40, 10 / 30)
    for kind in (torch.tensor, MetaTensor):
        assert dice(kind(pred), kind(ref)) == 20 / 40


@pytest.mark.parametrize("score", [dice, iou])
def test_one_empty_mask_is_zero_and_two_are_nan(score) -> None:
    empty, full = np.zeros((3, 3)), np.ones((3, 3))
    assert score(empty, full) == score(full, empty) == 0.0
    assert math.isnan(score(empty, empty))


def test_volume_and_area_depend_on_the_spacing() -> None:
    assert volume_ml(35, spacing_mm=(2.0, 0.5, 1.0)) == pytest.approx(0.035)
    assert area_mm2(35, spacing_mm=(2.0, 0.5)) == pytest.approx(35.0)


def test_different_shapes_are_rejected() -> None:
    with pytest.raises(GeometryError, match="different shapes"):
        dice(np.ones((3, 4)), np.ones((4, 3)))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, math.nan, 1.0)])
def test_invalid_spacing_is_rejected(spacing_mm: tuple[float, ...]) -> None:
    with pytest.raises(GeometryError, match="spacing_mm"):
        volume_ml(1, spacing_mm=spacing_mm)
