"""`medunet train`, as a user types it."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Capture, Medunet, sets
from ignite.engine import Events
from small import SMALL_2D

from medunet.errors import DataError
from medunet.training import CheckpointHandler, Trainer

# MONAI and ignite warn about themselves; the command line silences them in its own process
pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = sets({**SMALL_2D, "tracking_uri": "", "epochs": 1})


def test_a_run_starts_from_another_with_fewer_classes_and_resumes_without_it(
    run_2d: Path, cells: Path, tmp_path: Path, medunet: Medunet, caplog: pytest.LogCaptureFixture
) -> None:
    more = sets({"label_values": [0, 255, 7], "label_names": "[membrane, cell, mito]"})
    words = ["train", "unet_2d", "--data", cells, "--output", tmp_path / "run", *SMALL, *more, "--init-from"]
    assert medunet(*words, cells) == 2  # no weights: rejected before anything is written
    assert not (tmp_path / "run").exists()
    start = shutil.copytree(run_2d, tmp_path / "start")
    with caplog.at_level(logging.WARNING, logger="medunet"):
        assert medunet(*words, start) == 0
    assert "head.weight: shape (3, 4, 1, 1) here, (2, 4, 1, 1) there" in caplog.text
    assert torch.load(tmp_path / "run" / "models" / "last.pt", weights_only=True)["epoch"] == 1
    shutil.rmtree(start)
    assert medunet(*words, start, "--resume", "--epochs", 2) == 0
    history = json.loads((tmp_path / "run" / "eval" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]


def test_interrupted_folds_are_resumed_to_the_same_weights(
    cells: Path, tmp_path: Path, medunet: Medunet, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = sets({"epochs": 2, "folds": 2})
    words = ["train", "unet_2d", "--data", cells, "--folds", "all", *SMALL, *more]
    iteration = Trainer._iteration

    def interrupted(trainer: Trainer, engine: Any, batch: Any) -> Any:
        # the first fold is complete, the second has one epoch of two
        if trainer_folder(trainer).endswith("fold_1/models") and engine.state.epoch == 2:
            raise KeyboardInterrupt
        return iteration(trainer, engine, batch)

    monkeypatch.setattr(Trainer, "_iteration", interrupted)
    assert medunet(*words, "--output", tmp_path / "parts") == 130
    printed = capsys.readouterr()
    assert "fold 0: trained" in printed.out
    assert "fold 1: stopped" in printed.out
    assert "rerun the same command to continue" in printed.err
    monkeypatch.setattr(Trainer, "_iteration", iteration)
    assert medunet(*words, "--output", tmp_path / "parts") == 0
    out = capsys.readouterr().out
    assert "fold 0: there already" in out
    assert "out of fold, 4 cases" in out
    words[words.index("all")] = 1
    assert medunet(*words, "--output", tmp_path / "through") == 0
    runs = (tmp_path / run / "models" / "fold_1.pt" for run in ("parts", "through"))
    parts, through = (torch.load(run, weights_only=True)["model"] for run in runs)
    assert all(torch.equal(parts[key], through[key]) for key in through)
    image = sorted((cells / "imagesTr").iterdir())[0]
    assert medunet("predict", tmp_path / "parts", image, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / image.name).is_file()


def trainer_folder(trainer: Trainer) -> str:
    """Return the run's folder, as its checkpoint handler knows it."""
    handlers = (entry[0] for entry in trainer._event_handlers[Events.STARTED])
    owners = (getattr(handler, "__self__", None) for handler in handlers)
    return next(str(owner.folder) for owner in owners if isinstance(owner, CheckpointHandler))


@pytest.mark.parametrize(
    ("error", "options", "code", "message"),
    [
        (KeyboardInterrupt(), [], 130, "--resume"),
        (DataError("loss is nan", file="case_1.png"), ["--folds", "0,1"], 3, "case_1.png: loss is nan"),
    ],
    ids=["interrupted", "failed folds"],
)
def test_the_exit_code_reports_how_training_ended(
    *,
    cells: Path,
    tmp_path: Path,
    medunet: Medunet,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    options: list[str],
    code: int,
    message: str,
) -> None:
    def stop(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Trainer, "_iteration", stop)
    assert medunet("train", "unet_2d", "--data", cells, "--output", tmp_path / "run", *SMALL, *options) == code
    printed = capsys.readouterr().err
    assert printed.count(message) >= max(len(options), 1)
    assert "Traceback" not in printed
