from __future__ import annotations

import pytest
import torch

from medunet.errors import ConfigError
from medunet.losses import BorderWeightedCELoss, DeepSupervisionLoss, DiceCELoss


def levels(count=3, size=8, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "requires_grad": requires_grad}
    return [torch.randn(2, 3, size >> level, size >> level, **options) for level in range(count)]


TARGET = torch.randint(0, 3, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_each_level_counts_half_of_the_level_before(dtype):
    outputs, loss = levels(), DiceCELoss()
    targets = TARGET, TARGET[..., 1::2, 1::2], TARGET[..., 2::4, 2::4]
    parts = [loss(output, target) for output, target in zip(outputs, targets, strict=True)]
    want = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    assert torch.allclose(DeepSupervisionLoss(loss)(outputs, TARGET.to(dtype)), want)


def test_a_single_tensor_gives_the_plain_loss():
    output = levels(1)[0]
    for logits in (output, [output], (output,)):
        assert torch.equal(DeepSupervisionLoss(DiceCELoss())(logits, TARGET), DiceCELoss()(output, TARGET))


def test_a_weight_stays_with_its_label():
    # Only voxels of class 2 weigh; at each level the loss must count these and no others.
    outputs, weight = levels(requires_grad=True), (TARGET == 2).float()
    DeepSupervisionLoss(BorderWeightedCELoss())(outputs, TARGET, weight).backward()
    for step, output in zip((1, 2, 4), outputs, strict=True):
        counted = TARGET[..., step // 2 :: step, step // 2 :: step] == 2
        assert torch.equal(output.grad.abs().sum(1, keepdim=True) > 0, counted)


def test_given_level_weights_are_relative_and_zero_skips_a_level():
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
