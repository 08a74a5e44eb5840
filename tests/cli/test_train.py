"""`medunet train`, as a user types it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medunet.cli.app import main
from medunet.datasets import write_phantom_dataset

# MONAI and ignite warn about themselves; the command line silences them in its own process
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["--set", "network_def::channels=[4,8]", "--set", "steps_per_epoch=2", "--set", "batch_size=2"]
SMALL_2D = [*SMALL, "--set", "patch_size=[32,32]", "--set", "val_interval=1", "--set", "tracking_uri=", "--epochs", "1"]


@pytest.fixture
def medunet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `medunet WORDS` in this process and return the exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["medunet", *map(str, words)])
        with pytest.raises(SystemExit) as info:
            main()
        return info.value.code or 0

    return run


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cells")
    write_phantom_dataset(root, kind="cells", cases=4, size=(48, 48))
    return root


def test_a_run_starts_from_another_with_fewer_classes(
    cells: Path, tmp_path: Path, medunet: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert medunet("train", "unet_2d", "--data", cells, "--output", first, *SMALL_2D) == 0
    more = ["--set", "label_values=[0,255,7]", "--set", "label_names=[membrane,cell,mito]", "--set", "ema_decay=0.9"]
    words = ["train", "unet_2d", "--data", cells, "--output", second, "--init-from", first, *SMALL_2D, *more]
    with caplog.at_level(logging.WARNING, logger="medunet"):
        assert medunet(*words) == 0
    assert "head.weight: shape (3, 4, 1, 1) here, (2, 4, 1, 1) there" in caplog.text
    last = torch.load(second / "models" / "last.pt", weights_only=True)
    assert last["average"]["steps"] == 2


def test_weights_that_are_not_there_are_refused_before_anything_is_made(
    cells: Path, tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "unet_2d", "--data", cells, "--output", run, "--init-from", tmp_path / "none", *SMALL_2D]
    assert medunet(*words) == 2
    assert "no weights to start from" in capsys.readouterr().err
    assert not run.exists()
