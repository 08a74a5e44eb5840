from __future__ import annotations

import math

import monai.losses
import monai.networks
import pytest
import torch

from medunet.errors import ConfigError
from medunet.losses import BorderWeightedCELoss, DiceCELoss

BOTH = pytest.mark.parametrize("loss_class", [DiceCELoss, BorderWeightedCELoss])


def batch(channels=3, shape=(6, 5, 7)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, *shape, generator=generator)
    return logits, torch.randint(0, max(2, channels), (2, 1, *shape), generator=generator)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("over_batch", [True, False])
def test_it_agrees_with_monai_without_ignored_voxels(include_background, over_batch):
    logits, target = batch()
    monai_loss = monai.losses.DiceCELoss(
        softmax=True, to_onehot_y=True, include_background=include_background, batch=over_batch
    )
    loss = DiceCELoss(include_background=include_background, batch=over_batch)
    assert torch.allclose(loss(logits, target), monai_loss(logits, target))


def test_dice_of_hand_computed_probabilities():
    # p(class 1) = 3/4, 3/4, 1/4 for labels 1, 0, 1: Dice = 2 (3/4 + 1/4) / (7/4 + 2) = 8/15
    logits = torch.tensor([[[0.0, 0.0, 0.0]], [[math.log(3), math.log(3), -math.log(3)]]])[None]
    loss = DiceCELoss(lambda_ce=0.0, smooth=0.0)(logits, torch.tensor([[[[1, 0, 1]]]]))
    assert loss.item() == pytest.approx(1 - 8 / 15, rel=1e-6)


@BOTH
@pytest.mark.parametrize("options", [{}, {"class_weights": [0.3, 2.0], "ignore_index": 7}])
def test_one_channel_is_the_logit_of_class_one(loss_class, options):
    logits, target = batch(channels=1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    loss = loss_class(**options)
    assert torch.allclose(loss(logits, target), loss(two, target))


def test_ignored_voxels_change_neither_loss_nor_gradient():
    logits, target = batch()
    target[..., 4:] = 255
    loss = DiceCELoss(ignore_index=255)
    assert torch.allclose(loss(logits, target), loss(logits[..., :4], target[..., :4]))
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad[..., 4:].abs().max() == 0
    assert logits.grad[..., :4].abs().max() > 0


def test_the_weight_map_acts_on_the_cross_entropy_only():
    logits, target = batch()
    weight = torch.rand(target.shape)
    dice_only = DiceCELoss(lambda_ce=0.0)
    assert torch.equal(dice_only(logits, target, weight), dice_only(logits, target))
    want = 0.5 * BorderWeightedCELoss([1, 2, 3])(logits, target, weight) + 2 * dice_only(logits, target)
    loss = DiceCELoss(lambda_ce=0.5, lambda_dice=2.0, class_weights=[1, 2, 3])
    assert torch.allclose(loss(logits, target, weight), want)


@BOTH
def test_bfloat16_logits_are_computed_in_float32(loss_class):
    logits, target = batch()
    logits = logits.bfloat16()
    loss = loss_class()(logits, target)
    assert torch.equal(loss, loss_class()(logits.float(), target))
    assert loss.dtype == torch.float32


@BOTH
def test_a_valid_network_gets_the_middle_of_the_label(loss_class):
    logits, target = batch()
    weight = torch.rand(target.shape)
    padded, padded_weight = (torch.nn.functional.pad(one, (2, 2, 1, 1, 3, 3), value=1) for one in (target, weight))
    expected = loss_class()(logits, target, weight)
    assert torch.equal(loss_class(center_crop=True)(logits, padded, padded_weight), expected)


@pytest.mark.parametrize("channels", [2, 3])
def test_one_hot_targets_are_rejected_with_the_remedy(channels):
    logits, target = batch(channels=channels)
    onehot = monai.networks.one_hot(target, channels)
    with pytest.raises(ConfigError, match=r"target does not match the logits.*remedy: .*argmax\(dim=1"):
        DiceCELoss()(logits, onehot)
    assert DiceCELoss()(logits, onehot.argmax(dim=1, keepdim=True)) == DiceCELoss()(logits, target)


@BOTH
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_of_0_and_255_is_rejected(loss_class, channels):
    logits, target = batch(channels=channels)
    with pytest.raises(ConfigError, match=rf"received 0 to 255, expected 0 to {max(1, channels - 1)}"):
        loss_class()(logits, (target > 0) * 255)
