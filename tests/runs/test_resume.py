"""A run is resumed with its own values, for more epochs if requested, and a rejected command does not block it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.errors import DataError
from medunet.runs import FoldOutcome, PreparedRun, TrainingResult, train_bundle, train_fold, train_folds
from medunet.runtime import load_checkpoint
from medunet.training import read_history

# MONAI and ignite warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")
SMALL: dict[str, Any] = {**SMALL_2D, "epochs": 2, "folds": 2}  # as of the fixture run_2d


@pytest.fixture
def run(run_2d: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_2d, tmp_path / "run"))


def train(cells: Path, run: Path, *, resume: bool = True, presets: Any = (), **changes: Any) -> TrainingResult:
    options: dict[str, Any] = {"presets": presets, "device": "cpu", "tracking_uri": "", "resume": resume}
    return train_bundle(find_bundle("unet_2d"), cells, run, changes={**SMALL, **changes}, **options)


def test_the_model_card_has_the_results_of_the_kept_epoch_once(cells: Path, run: Path) -> None:
    train(cells, run, epochs=2)
    card = (run / "docs" / "README.md").read_text()
    assert card.count("## Results") == 1
    history = read_history(run)
    kept = next(entry for entry in history if entry["epoch"] == history[-1]["kept_epoch"])
    assert f"Epoch {kept['epoch']}, 2 validation cases" in card
    assert f"| {kept['val_dice']['cell']:.3f} |" in card


@pytest.mark.parametrize("preset", [(), ("sgd_poly",)])
def test_a_finished_run_is_trained_for_more_epochs(preset: tuple[str, ...], cells: Path, tmp_path: Path) -> None:
    rate = train(cells, tmp_path / "run", resume=False, presets=preset, epochs=1).history[-1]["lr"]
    result = train(cells, tmp_path / "run", presets=preset, epochs=4)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert result.history[1]["lr"] > rate  # the schedule is the one of four epochs
    assert load_checkpoint(tmp_path / "run" / "models" / "last.pt")["finished"]


@pytest.mark.parametrize(
    ("changes", "message"), [({"epochs": 0}, "epochs: 0, there 2"), ({"epochs": 3, "seed": 3}, "seed: 3, there 0")]
)
def test_changed_values_of_a_run_are_rejected_by_name(
    changes: dict[str, Any], message: str, cells: Path, run: Path
) -> None:
    before = (run / "configs" / "train.json").read_text()
    with pytest.raises(DataError, match=message):
        train(cells, run, **changes)
    assert (run / "configs" / "train.json").read_text() == before


def test_folds_are_trained_and_joined_as_prepared(cells: Path, tmp_path: Path) -> None:
    """What another process writes into the folder of a fold is not run, and no picture in it ends the command."""

    def tamper(runs: Mapping[int, PreparedRun], device: str, uri: str | None) -> Iterator[FoldOutcome]:
        for fold, run in runs.items():
            file = run.folder / "configs" / "train.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "epochs": 3}))
            (run.folder / "docs" / "curves.png").write_bytes(b"\x89PNG\xff")
            yield train_fold(fold, run, device, uri)

    options: dict[str, Any] = {"changes": {**SMALL, "epochs": 1}, "device": "cpu", "tracking_uri": ""}
    result = train_folds(find_bundle("unet_2d"), cells, tmp_path / "cv", trainer=tamper, **options)
    assert [len(read_history(outcome.run)) for outcome in result.folds] == [1, 1]
    assert result.is_whole
