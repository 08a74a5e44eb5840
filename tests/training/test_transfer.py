"""Fine-tuning takes over what fits and says what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medunet.errors import DataError
from medunet.networks import UNet
from medunet.runtime import save_checkpoint, transfer_weights
from medunet.training import weights_of


def unet(seed: int, *, channels: int = 1, classes: int = 2, levels: tuple[int, ...] = (4, 8)) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, channels, classes, channels=levels, norm="batch")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run's folder with weights."""
    save_checkpoint({"model": unet(0).state_dict()}, tmp_path / "source" / "models" / "model.pt")
    return tmp_path / "source"


def test_other_classes_and_channels_leave_out_the_head_and_the_first_convolution(source: Path) -> None:
    network, before = unet(1, channels=3, classes=5), unet(1, channels=3, classes=5).state_dict()
    report = transfer_weights(network, weights_of(source))
    first = next(name for name in before if name.startswith("encoder.0") and name.endswith("weight"))
    kept = {text.partition(":")[0] for text in report.left_out}
    assert kept == {first, "head.weight", "head.bias"}
    after, theirs = network.state_dict(), unet(0).state_dict()
    for name in after:
        assert torch.equal(after[name], before[name] if name in kept else theirs[name])
    assert "head.weight: shape (5, 4, 1, 1) here, (2, 4, 1, 1) there" in str(report)


def test_more_levels_are_listed_as_new(source: Path) -> None:
    report = transfer_weights(unet(1, levels=(4, 8, 16)), weights_of(source))
    assert "encoder.2.convs.0.conv.weight: only here" in report.left_out


def test_nothing_that_fits_is_an_error(source: Path) -> None:
    with pytest.raises(DataError, match="fit"):
        transfer_weights(torch.nn.Linear(2, 2), weights_of(source))
