"""The loss of regions, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from medunet.errors import ConfigError
from medunet.losses import RegionDiceCELoss

REGIONS = [[1, 2, 3], [2, 3], [3]]


def test_undecided_logits_cost_log_two_and_half_the_dice() -> None:
    target = torch.tensor([[[0, 1, 2, 3]]])
    logits = torch.zeros(1, 3, 1, 4)
    cross_entropy = RegionDiceCELoss(REGIONS, lambda_dice=0)(logits, target)
    assert float(cross_entropy) == pytest.approx(math.log(2))
    # probabilities of 0.5 at 4 places: 1 - 2 * 0.5 n / (2 + n) for regions of n = 3, 2 and 1 voxels
    dice = RegionDiceCELoss(REGIONS, lambda_ce=0, smooth=0)(logits, target)
    assert float(dice) == pytest.approx(1 - (3 / 5 + 2 / 4 + 1 / 3) / 3)


def test_each_region_counts_by_itself() -> None:
    target = torch.tensor([[[0, 1, 2, 3]]])
    right = torch.tensor([[[[-20.0, 20, 20, 20]], [[-20.0, -20, 20, 20]], [[-20.0, -20, -20, 20]]]])
    loss = RegionDiceCELoss(REGIONS)
    assert float(loss(right, target)) == pytest.approx(0, abs=1e-4)
    wrong = right.clone()
    wrong[:, 1] *= -1
    # of twelve decisions four are wrong by 20; the Dice of one region of three is 0
    assert float(loss(wrong, target)) == pytest.approx(20 * 4 / 12 + 1 / 3, abs=1e-3)


def test_ignored_voxels_count_in_neither_term() -> None:
    loss = RegionDiceCELoss(REGIONS, ignore_index=255)
    logits = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    target = torch.randint(4, (2, 1, 5, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    cut = loss(logits[..., :2], target[..., :2])
    target[..., 2:] = 255
    assert float(loss(logits, target)) == pytest.approx(float(cut), abs=1e-6)
    assert float(loss(logits, torch.full_like(target, 255))) == pytest.approx(0, abs=1e-6)


def test_weights_count_in_the_cross_entropy_only() -> None:
    loss = RegionDiceCELoss(REGIONS, lambda_dice=0)
    target, logits = torch.tensor([[[0, 3]]]), torch.zeros(1, 3, 1, 2)
    weighted = loss(logits, target, torch.tensor([[[[1.0, 5.0]]]]))
    assert float(weighted) == pytest.approx(3 * math.log(2))


def test_other_numbers_of_channels_are_rejected() -> None:
    with pytest.raises(ConfigError, match="do not match the regions"):
        RegionDiceCELoss(REGIONS)(torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ConfigError, match="regions must have class indices"):
        RegionDiceCELoss([])
