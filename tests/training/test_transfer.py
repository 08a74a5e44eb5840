"""Fine-tuning takes over what fits and says what does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medunet.errors import DataError
from medunet.networks import UNet
from medunet.runtime import save_checkpoint, transfer_weights
from medunet.training import Trainer, weights_of


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
    assert set(report.reshaped) == {first, "head.weight", "head.bias"}
    assert report.reshaped["head.weight"] == ((5, 4, 1, 1), (2, 4, 1, 1))
    assert not report.new and not report.unused
    after, theirs = network.state_dict(), unet(0).state_dict()
    for name in after:
        assert torch.equal(after[name], before[name] if name in report.reshaped else theirs[name])
    assert "head.weight: shape (5, 4, 1, 1) here, (2, 4, 1, 1) there" in str(report)


def test_more_levels_are_listed_as_new(source: Path) -> None:
    report = transfer_weights(unet(1, levels=(4, 8, 16)), weights_of(source))
    assert any(name.startswith("encoder.2") for name in report.new)
    assert all(f"{name}: only here" in report.left_out() for name in report.new)


def test_nothing_that_fits_is_an_error(source: Path) -> None:
    with pytest.raises(DataError, match="fit"):
        transfer_weights(torch.nn.Linear(2, 2), weights_of(source))


def test_a_training_starts_from_the_other_run_and_a_resumed_one_does_not(
    tmp_path: Path, make_validated: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    first = make_validated(tmp_path / "first", epochs=1)
    first.run()
    model = tmp_path / "first" / "model.pt"
    with caplog.at_level(logging.INFO, logger="medunet"):
        second = make_validated(tmp_path / "second", epochs=1, learning_rate=0.0, decay=0.0, init_from=model)
        second.run()
    assert "9 of 9 tensors taken over" in caplog.text
    assert second.state.transfer.is_whole
    weights = torch.load(model, weights_only=True)["model"]
    for name, parameter in second.network.named_parameters():
        assert torch.equal(parameter, weights[name])
    resumed = make_validated(tmp_path / "second", epochs=2, init_from=model, resume=True)
    resumed.run()
    assert not hasattr(resumed.state, "transfer")


def test_what_is_left_out_is_a_warning(
    tmp_path: Path, make_validated: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    state = make_validated(tmp_path / "x").network.state_dict()
    state["2.weight"], state["2.bias"] = torch.zeros(3, 4, 1, 1), torch.zeros(3)
    save_checkpoint({"model": state}, tmp_path / "three_classes.pt")
    with caplog.at_level(logging.WARNING, logger="medunet"):
        make_validated(tmp_path / "y", epochs=1, init_from=tmp_path / "three_classes.pt").run()
    assert "2.weight: shape (2, 4, 1, 1) here, (3, 4, 1, 1) there" in caplog.text
