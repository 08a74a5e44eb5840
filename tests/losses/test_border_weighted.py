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


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 3), ("weighted_mean", 8)])
def test_each_voxel_is_scaled_by_its_weight(reduction, divisor):
    want = (2 * COSTS[0] + 1 * COSTS[1] + 5 * COSTS[2]) / divisor
    assert BorderWeightedCELoss(reduction=reduction)(LOGITS, TARGET, WEIGHT).item() == pytest.approx(want)


def test_class_weights_multiply_the_map_and_normalise_like_pytorch():
    logits, target = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 1, 5, 6))
    factors, cross_entropy = [0.5, 1.0, 4.0], torch.nn.functional.cross_entropy
    assert torch.allclose(BorderWeightedCELoss()(logits, target), cross_entropy(logits, target[:, 0]))
    loss = BorderWeightedCELoss(factors, reduction="weighted_mean")
    assert torch.allclose(loss(logits, target), cross_entropy(logits, target[:, 0], weight=torch.tensor(factors)))
    assert loss.state_dict() == {}


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
    logits.grad = None
    nothing = loss(logits, torch.full_like(target, 255))
    nothing.backward()
    assert nothing.item() == logits.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_targets_may_have_any_type_and_metadata(dtype):
    loss = BorderWeightedCELoss()
    got = loss(LOGITS, MetaTensor(TARGET.to(dtype)), MetaTensor(WEIGHT))
    assert type(got) is torch.Tensor
    assert torch.equal(got, loss(LOGITS, TARGET, WEIGHT))


@pytest.mark.parametrize(
    ("target_shape", "weight_shape", "center_crop"),
    [
        ((1, 1, 9, 12), None, False),
        ((1, 1, 5, 6), (1, 1, 9, 12), False),
        ((1, 1, 8, 6), None, True),  # odd surplus: no middle
        ((1, 2, 5, 6), None, False),
        ((2, 1, 5, 6), None, False),
    ],
)
def test_shapes_that_do_not_match_are_rejected(target_shape, weight_shape, center_crop):
    weight = None if weight_shape is None else torch.ones(weight_shape)
    loss = BorderWeightedCELoss(center_crop=center_crop)
    with pytest.raises(ConfigError):
        loss(torch.zeros(1, 2, 5, 6), torch.zeros(target_shape), weight)


def test_invalid_options_are_rejected():
    with pytest.raises(ConfigError, match="unknown reduction"):
        BorderWeightedCELoss(reduction="none")
    with pytest.raises(ConfigError, match="numbers >= 0"):
        BorderWeightedCELoss([1.0, -1.0])
    with pytest.raises(ConfigError, match="one number per class"):
        BorderWeightedCELoss([1.0, 2.0, 3.0])(LOGITS, TARGET)
