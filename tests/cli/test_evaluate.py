"""What `medunet evaluate` and related commands print, and where they write."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Capture, Medunet
from monai.data import MetaTensor
from rich.table import Table

from medunet.cli.options import wide_console
from medunet.cli.train import show_training
from medunet.io import SavePredictiond, write_volume
from medunet.runs import TrainingResult


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions of three cases, in one of which the class is missed, and their references."""
    for name, predicted in (("a", 5), ("b", 4), ("c", 0)):
        for folder, size in (("predictions", predicted), ("labelsTr", 5)):
            voxels = np.zeros((8, 8, 8), np.uint8)
            voxels[:size, :5, :5] = 3
            write_volume(voxels, tmp_path / folder / f"{name}.nii.gz", affine=np.eye(4))
    return tmp_path / "predictions", tmp_path / "labelsTr"


def test_each_number_of_the_table_has_its_count_of_cases(
    maps: tuple[Path, Path], medunet: Medunet, capsys: Capture
) -> None:
    predictions, references = maps
    assert medunet("evaluate", "--pred", predictions, "--ref", references, "--labels", "liver=3") == 0
    _, row = [line for line in capsys.readouterr().out.splitlines() if "HD95 mm" in line or "liver" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    dice = np.array([1, 8 / 9, 0])
    assert cells[1] == f"{dice.mean():.4f} ({dice.std(ddof=1):.4f})"
    assert cells[3] == f"{np.median(dice):.4f}"
    assert cells[5].endswith("n=2")  # no distance without a prediction
    errors = np.array([0, -20, -100])
    assert cells[8] == f"{errors.mean():.1f} ({errors.std(ddof=1):.1f})"
    assert cells[9:] == ["1", "0"]
    assert sorted(path.name for path in predictions.iterdir()) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert (predictions.parent / "predictions_evaluation" / "metrics.csv").is_file()


def test_names_of_labels_come_from_the_data_set_of_the_references(
    maps: tuple[Path, Path], medunet: Medunet, tmp_path: Path
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "spleen": 3}}))
    assert medunet("evaluate", "--pred", maps[0], "--ref", maps[1], "-o", tmp_path / "out") == 0
    assert list(json.loads((tmp_path / "out" / "metrics.json").read_text())["summary"]["classes"]) == ["spleen"]


@pytest.mark.parametrize(
    ("best", "why"), [(6, "the best validation"), (4, "the last validation (keep_epoch: last); epoch 4 has the best")]
)
def test_the_kept_epoch_is_printed_with_the_reason(best: int, why: str, capsys: Capture) -> None:
    show_training(TrainingResult(Path("run"), 6, kept_epoch=6, best_epoch=best, kept_dice={"liver": 0.5}))
    assert f"kept: epoch 6 of 6, {why}" in " ".join(capsys.readouterr().out.split())


def test_a_table_in_a_pipe_is_not_cut(capsys: Capture) -> None:
    wide_console().print(Table(*(f"{number:030d}" for number in range(10))))
    assert f"{9:030d}" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "is_empty"), [(0, True), (1, False)])
def test_a_result_without_any_class_is_logged(
    value: int, is_empty: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meta = {"filename_or_obj": "case_7.nii.gz", "spatial_shape": (4, 4, 4), "original_affine": np.eye(4)}
    item = {key: MetaTensor(torch.full((1, 4, 4, 4), value), meta=meta) for key in ("image", "pred")}
    with caplog.at_level(logging.WARNING, logger="medunet"):
        SavePredictiond("pred", output_dir=tmp_path, labels={"background": 0, "liver": 1})(item)
    assert ("case_7: no class was found" in caplog.text) is is_empty
