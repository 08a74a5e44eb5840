from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.losses import BorderWeightedCELoss

LOG3 = math.log(3)
LOG4 = math.log(4)

# Logits (0, log 3) are probabilities (1/4, 3/4): class 0 costs log 4, class 1 costs log 4/3.
LOGITS = torch.tensor([0.0, LOG3]).reshape(1, 2, 1, 1).expand(1, 2, 1, 3)
TARGET = torch.tensor([[[[0, 1, 1]]]])
WEIGHT = torch.tensor([[[[2.0, 1.0, 5.0]]]])
COSTS = [LOG4, LOG4 - LOG3, LOG4 - LOG3]


@pytest.mark.parametrize(
    ("reduction", "divisor"), [("sum", 1), ("mean", 3), ("weighted_mean", 8)], ids=["sum", "mean", "weighted_mean"]
)
def test_each_voxel_counts_by_its_weight(reduction, divisor):
    want = (2 * COSTS[0] + 1 * COSTS[1] + 5 * COSTS[2]) / divisor
    assert BorderWeightedCELoss(reduction=reduction)(LOGITS, TARGET, WEIGHT).item() == pytest.approx(want)


def test_without_weights_it_is_plain_cross_entropy():
    logits, target = torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 1, 5, 6, 7))
    want = torch.nn.functional.cross_entropy(logits, target[:, 0])
    assert torch.allclose(BorderWeightedCELoss()(logits, target), want)


def test_class_weights_multiply_the_map_and_normalise_like_pytorch():
    logits, target = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 1, 5, 6))
    factors = [0.5, 1.0, 4.0]
    want = torch.nn.functional.cross_entropy(logits, target[:, 0], weight=torch.tensor(factors))
    got = BorderWeightedCELoss(factors, reduction="weighted_mean")(logits, target)
    assert torch.allclose(got, want)
    want_sum = (0.5 * 2 * COSTS[0]) + 3 * (1 * COSTS[1] + 5 * COSTS[2])
    got = BorderWeightedCELoss([0.5, 3.0], reduction="sum")(LOGITS, TARGET, WEIGHT)
    assert got.item() == pytest.approx(want_sum, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_ignored_voxels_change_nothing(reduction):
    loss = BorderWeightedCELoss(ignore_index=255, reduction=reduction)
    target = torch.tensor([[[[0, 1, 255]]]])
    with_ignored = loss(LOGITS, target, WEIGHT)
    assert torch.allclose(with_ignored, loss(LOGITS[..., :2], target[..., :2], WEIGHT[..., :2]))
    logits = LOGITS.clone().requires_grad_()
    loss(logits, target, WEIGHT).backward()
    assert logits.grad[..., 2].abs().sum() == 0
    assert logits.grad[..., :2].abs().min() > 0


@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_a_batch_of_ignored_voxels_costs_nothing(reduction):
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = BorderWeightedCELoss(ignore_index=255, reduction=reduction)(logits, torch.full((1, 1, 3, 3), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def test_one_channel_is_the_logit_of_class_one():
    difference = LOGITS[:, 1:] - LOGITS[:, :1]
    for loss in (BorderWeightedCELoss(), BorderWeightedCELoss([0.3, 2.0], ignore_index=7)):
        assert torch.allclose(loss(difference, TARGET, WEIGHT), loss(LOGITS, TARGET, WEIGHT))


def test_gradients_are_those_of_the_formula():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target, weight = torch.randint(0, 3, (2, 4, 5)), torch.rand(2, 4, 5) + 0.5
    BorderWeightedCELoss(reduction="sum")(logits, target, weight).backward()
    onehot = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    want = weight[:, None] * (logits.detach().softmax(1) - onehot)  # d E / d logit = w (p - y)
    assert torch.allclose(logits.grad, want, atol=1e-6)


def test_bfloat16_logits_are_computed_in_float32():
    logits = torch.randn(1, 3, 9, 9).bfloat16()
    target = torch.randint(0, 3, (1, 1, 9, 9))
    loss = BorderWeightedCELoss()
    assert torch.equal(loss(logits, target), loss(logits.float(), target))
    assert loss(logits, target).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_targets_may_have_any_type_and_meta_data(dtype):
    loss = BorderWeightedCELoss()
    got = loss(LOGITS, MetaTensor(TARGET.to(dtype)), MetaTensor(WEIGHT))
    assert type(got) is torch.Tensor
    assert torch.equal(got, loss(LOGITS, TARGET, WEIGHT))


def test_a_valid_network_gets_the_middle_of_the_label():
    logits = torch.randn(1, 2, 5, 6)
    target, weight = torch.randint(0, 2, (1, 1, 9, 12)), torch.rand(1, 1, 9, 12)
    want = BorderWeightedCELoss()(logits, target[..., 2:7, 3:9], weight[..., 2:7, 3:9])
    assert torch.equal(BorderWeightedCELoss(center_crop=True)(logits, target, weight), want)


@pytest.mark.parametrize(
    ("target_shape", "weight_shape", "center_crop"),
    [
        ((1, 1, 9, 12), None, False),
        ((1, 1, 5, 6), (1, 1, 9, 12), False),
        ((1, 1, 8, 6), None, True),  # odd surplus: no middle
        ((1, 1, 3, 4), None, True),
        ((1, 2, 5, 6), None, False),
        ((2, 1, 5, 6), None, False),
        ((5, 6), None, False),
    ],
)
def test_shapes_that_do_not_fit_are_refused(target_shape, weight_shape, center_crop):
    weight = None if weight_shape is None else torch.ones(weight_shape)
    loss = BorderWeightedCELoss(center_crop=center_crop)
    with pytest.raises(ConfigError):
        loss(torch.zeros(1, 2, 5, 6), torch.zeros(target_shape), weight)


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError):
        BorderWeightedCELoss(reduction="none")
    with pytest.raises(ConfigError):
        BorderWeightedCELoss([1.0, -1.0])
    with pytest.raises(ConfigError):
        BorderWeightedCELoss([1.0, 2.0, 3.0])(LOGITS, TARGET)


def test_a_checkpoint_holds_no_loss_state():
    assert BorderWeightedCELoss([1.0, 2.0]).state_dict() == {}
