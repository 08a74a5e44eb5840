"""`medunet train`, as a user types it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from medunet.errors import DataError
from medunet.training import CheckpointHandler, Trainer

# MONAI and ignite warn about themselves; the command line silences them in its own process
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["--set", "network_def::channels=[4,8]", "--set", "steps_per_epoch=2", "--set", "batch_size=2"]
SMALL_2D = [*SMALL, "--set", "patch_size=[32,32]", "--set", "val_interval=1", "--set", "tracking_uri=", "--epochs", "1"]


def test_a_run_starts_from_another_with_fewer_classes(
    run_2d: Path, cells: Path, tmp_path: Path, medunet: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    second = tmp_path / "second"
    more = ["--set", "label_values=[0,255,7]", "--set", "label_names=[membrane,cell,mito]", "--set", "ema_decay=0.9"]
    words = ["train", "unet_2d", "--data", cells, "--output", second, "--init-from", run_2d, *SMALL_2D, *more]
    with caplog.at_level(logging.WARNING, logger="medunet"):
        assert medunet(*words) == 0
    assert "head.weight: shape (3, 4, 1, 1) here, (2, 4, 1, 1) there" in caplog.text
    last = torch.load(second / "models" / "last.pt", weights_only=True)
    assert last["average"]["steps"] == 2


def test_weights_that_are_not_there_are_refused_before_anything_is_made(
    cells: Path, tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (tmp_path / "none").mkdir()
    words = ["train", "unet_2d", "--data", cells, "--output", run, "--init-from", tmp_path / "none", *SMALL_2D]
    assert medunet(*words) == 2
    assert "no weights to start from" in capsys.readouterr().err
    assert not run.exists()


def test_folds_that_are_stopped_go_on_where_they_were(
    cells: Path,
    tmp_path: Path,
    medunet: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["train", "unet_2d", "--data", cells, "--folds", "all", *SMALL_2D, "--epochs", "2", "--set", "folds=2"]
    words += ["--set", "ema_decay=0.9"]
    iteration = Trainer._iteration

    def interrupted(trainer: Trainer, engine: Any, batch: Any) -> Any:
        # the first fold is whole, the second has one epoch of two
        if trainer_folder(trainer).endswith("fold_1/models") and engine.state.epoch == 2:
            raise KeyboardInterrupt
        return iteration(trainer, engine, batch)

    monkeypatch.setattr(Trainer, "_iteration", interrupted)
    assert medunet(*words, "--output", tmp_path / "parts") == 130
    shown = capsys.readouterr()
    assert "fold 0: trained" in shown.out
    assert "fold 1: stopped" in shown.out
    assert "rerun the same command to continue" in shown.err
    monkeypatch.setattr(Trainer, "_iteration", iteration)
    assert medunet(*words, "--output", tmp_path / "parts") == 0
    shown = capsys.readouterr()
    assert "fold 0: there already" in shown.out
    assert "out of fold, 4 cases" in shown.out
    assert medunet(*words, "--output", tmp_path / "through") == 0
    for fold in (0, 1):
        name = f"models/fold_{fold}.pt"
        parts, through = (torch.load(tmp_path / run / name, weights_only=True)["model"] for run in ("parts", "through"))
        assert all(torch.equal(parts[key], through[key]) for key in through)
    # the output is a bundle
    image = sorted((cells / "imagesTr").iterdir())[0]
    assert medunet("predict", tmp_path / "parts", image, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / image.name).is_file()


def trainer_folder(trainer: Trainer) -> str:
    """The run's folder, as its checkpoint handler knows it."""
    handlers = (entry[0] for entry in trainer._event_handlers[Events.STARTED])
    owners = (getattr(handler, "__self__", None) for handler in handlers)
    return next(str(owner.folder) for owner in owners if isinstance(owner, CheckpointHandler))


def test_a_run_that_is_stopped_says_how_to_go_on(
    cells: Path,
    tmp_path: Path,
    medunet: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_iteration", interrupted)
    assert medunet("train", "unet_2d", "--data", cells, "--output", tmp_path / "run", *SMALL_2D) == 130
    assert "--resume" in capsys.readouterr().err


def test_a_failed_fold_tells_by_the_exit_code(
    cells: Path,
    tmp_path: Path,
    medunet: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise DataError("loss is nan", file="case_1.png")

    monkeypatch.setattr(Trainer, "_iteration", broken)
    words = ["train", "unet_2d", "--data", cells, "--output", tmp_path / "run", "--folds", "0,1", *SMALL_2D]
    assert medunet(*words) == 3
    error = capsys.readouterr().err
    assert error.count("case_1.png: loss is nan") >= 2
    assert "Traceback" not in error
    assert medunet(*words[:-2], "--folds", "none") == 2
    assert "--folds 0,2" in capsys.readouterr().err


def test_presets_and_deep_supervision_train_and_predict(
    cells: Path, tmp_path: Path, medunet: Callable[..., int]
) -> None:
    run = tmp_path / "run"
    deep = ["--set", "network_def::channels=[4,8,16]", "--set", "network_def::deep_supervision=1"]
    words = ["--data", cells, "--output", run, *SMALL_2D, *deep, "--preset", "few", "--preset", "sgd_poly"]
    assert medunet("train", "unet_2d", *words) == 0
    config = json.loads((run / "configs" / "train.json").read_text())
    assert config["loss"]["_target_"].endswith("BorderWeightedCELoss")
    assert config["optimizer"]["_target_"] == "torch.optim.SGD"
    image = sorted((cells / "imagesTr").iterdir())[0]
    assert medunet("predict", run, image, "--output", tmp_path / "out") == 0


def test_few_trains_volumes(volumes: Path, tmp_path: Path, medunet: Callable[..., int]) -> None:
    words = ["--data", volumes, "--output", tmp_path / "run", *SMALL, "--set", "patch_size=[16,16,16]"]
    words += ["--epochs", 1, "--preset", "few", "--tracking-uri", ""]
    assert medunet("train", "unet_3d", *words) == 0
    config = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    assert config["augment"]["deform"]["elastic_prob"] == 0.9


def test_an_unknown_preset_names_those_that_there_are(
    cells: Path, tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "unet_2d", "--data", cells, "--output", tmp_path / "run", *SMALL_2D]
    assert medunet(*words, "--preset", "many") == 2
    error = capsys.readouterr().err
    assert "few" in error
    assert "sgd_poly" in error
    assert not (tmp_path / "run").exists()
