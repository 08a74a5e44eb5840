import math

import monai.losses
import monai.networks
import pytest
import torch

from medunet.errors import ConfigError
from medunet.losses import BorderWeightedCELoss, DeepSupervisionLoss, DiceCELoss, DistanceLoss, RegionDiceCELoss

BOTH = pytest.mark.parametrize("loss_class", [DiceCELoss, BorderWeightedCELoss])


def batch(channels=3, shape=(6, 5, 7)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, *shape, generator=generator)
    return logits, torch.randint(0, max(2, channels), (2, 1, *shape), generator=generator)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("over_batch", [True, False])
def test_dice_ce_matches_monai_without_ignored_voxels(include_background, over_batch):
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


def test_the_weight_map_applies_to_the_cross_entropy_only():
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
def test_center_crop_uses_the_middle_of_the_label(loss_class):
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


REGIONS = [[1, 2, 3], [2, 3], [3]]


def test_region_loss_of_zero_logits_by_hand():
    target = torch.tensor([[[0, 1, 2, 3]]])
    logits = torch.zeros(1, 3, 1, 4)
    cross_entropy = RegionDiceCELoss(REGIONS, lambda_dice=0)(logits, target)
    assert float(cross_entropy) == pytest.approx(math.log(2))
    # probabilities of 0.5 at 4 places: 1 - 2 * 0.5 n / (2 + n) for regions of n = 3, 2 and 1 voxels
    dice = RegionDiceCELoss(REGIONS, lambda_ce=0, smooth=0)(logits, target)
    assert float(dice) == pytest.approx(1 - (3 / 5 + 2 / 4 + 1 / 3) / 3)


def test_each_region_is_scored_separately():
    target = torch.tensor([[[0, 1, 2, 3]]])
    right = torch.tensor([[[[-20.0, 20, 20, 20]], [[-20.0, -20, 20, 20]], [[-20.0, -20, -20, 20]]]])
    loss = RegionDiceCELoss(REGIONS)
    assert float(loss(right, target)) == pytest.approx(0, abs=1e-4)
    wrong = right.clone()
    wrong[:, 1] *= -1
    # of twelve decisions four are wrong by 20; the Dice of one region of three is 0
    assert float(loss(wrong, target)) == pytest.approx(20 * 4 / 12 + 1 / 3, abs=1e-3)


def test_ignored_voxels_are_excluded_from_both_terms():
    loss = RegionDiceCELoss(REGIONS, ignore_index=255)
    logits = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    target = torch.randint(4, (2, 1, 5, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    cut = loss(logits[..., :2], target[..., :2])
    target[..., 2:] = 255
    assert float(loss(logits, target)) == pytest.approx(float(cut), abs=1e-6)
    assert float(loss(logits, torch.full_like(target, 255))) == pytest.approx(0, abs=1e-6)


def test_weights_apply_to_the_cross_entropy_only():
    loss = RegionDiceCELoss(REGIONS, lambda_dice=0)
    target, logits = torch.tensor([[[0, 3]]]), torch.zeros(1, 3, 1, 2)
    weighted = loss(logits, target, torch.tensor([[[[1.0, 5.0]]]]))
    assert float(weighted) == pytest.approx(3 * math.log(2))


def test_wrong_numbers_of_channels_are_rejected():
    with pytest.raises(ConfigError, match="do not match the regions"):
        RegionDiceCELoss(REGIONS)(torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ConfigError, match="regions must have class indices"):
        RegionDiceCELoss([])


def levels(count=3, size=8, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "requires_grad": requires_grad}
    return [torch.randn(2, 3, size >> level, size >> level, **options) for level in range(count)]


TARGET = torch.randint(0, 3, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_each_level_has_half_the_weight_of_the_finer_one(dtype):
    outputs, loss = levels(), DiceCELoss()
    targets = TARGET, TARGET[..., 1::2, 1::2], TARGET[..., 2::4, 2::4]
    parts = [loss(output, target) for output, target in zip(outputs, targets, strict=True)]
    want = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    assert torch.allclose(DeepSupervisionLoss(loss)(outputs, TARGET.to(dtype)), want)


def test_a_single_tensor_gives_the_plain_loss():
    output = levels(1)[0]
    for logits in (output, [output], (output,)):
        assert torch.equal(DeepSupervisionLoss(DiceCELoss())(logits, TARGET), DiceCELoss()(output, TARGET))


def test_weights_are_resampled_with_the_labels():
    # Only voxels of class 2 weigh; at each level the loss must count these and no others.
    outputs, weight = levels(requires_grad=True), (TARGET == 2).float()
    DeepSupervisionLoss(BorderWeightedCELoss())(outputs, TARGET, weight).backward()
    for step, output in zip((1, 2, 4), outputs, strict=True):
        counted = TARGET[..., step // 2 :: step, step // 2 :: step] == 2
        assert torch.equal(output.grad.abs().sum(1, keepdim=True) > 0, counted)


def test_level_weights_are_relative_and_zero_skips_a_level():
    outputs = levels()
    outputs[1] = torch.full_like(outputs[1], float("nan"))
    loss = DeepSupervisionLoss(BorderWeightedCELoss(), level_weights=[3, 0, 1])
    ce = BorderWeightedCELoss()
    want = 0.75 * ce(outputs[0], TARGET) + 0.25 * ce(outputs[2], TARGET[..., 2::4, 2::4])
    assert torch.allclose(loss(outputs, TARGET), want)


def test_invalid_level_weights_are_rejected():
    with pytest.raises(ConfigError):
        DeepSupervisionLoss(DiceCELoss(), level_weights=[0, 0])
    with pytest.raises(ConfigError):
        DeepSupervisionLoss(DiceCELoss(), level_weights=[1, 1])(levels(3), TARGET)
    with pytest.raises(ConfigError, match="must have a number > 0"):
        DeepSupervisionLoss(DiceCELoss(), level_weights=[0, 1])(levels(1), TARGET)


def test_a_network_learns_distances_beside_classes():
    target, distance = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    target[..., 1:3, 1:3], distance[..., 1:3, 1:3] = 1, 0.5
    wrong = torch.zeros(1, 2, 4, 4)
    right = torch.cat([18 * target - 9, torch.logit(distance.clamp(1e-4, 0.9999))], dim=1)
    loss = DistanceLoss()
    assert loss(right, target, distance) < 0.3 * loss(wrong, target, distance)
    swapped = torch.cat([right[:, 1:], right[:, :1]], dim=1)
    assert loss(right, target, distance) < loss(swapped, target, distance)
    assert torch.isclose(loss(right, target, distance), DeepSupervisionLoss(loss)([right], target, distance))
    weight = torch.ones_like(distance)
    weight[..., 0, 0] = 5.0
    only_there = wrong.clone()
    only_there[..., 0, 0] = right[..., 0, 0]
    gain = [loss(wrong, target, distance, w) - loss(only_there, target, distance, w) for w in (weight, 2 * weight)]
    assert torch.isclose(*gain)  # only ratios count
    assert gain[0] > loss(wrong, target, distance) - loss(only_there, target, distance)
