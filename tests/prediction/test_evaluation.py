"""Scores of predicted files against reference files."""

from pathlib import Path

import numpy as np
import pytest

from medunet.errors import DataError, GeometryError
from medunet.io import write_volume
from medunet.prediction import evaluate_pairs, pair_files

LABELS = {"background": 0, "liver": 3}


def write(folder: Path, name: str, *, shift: int = 0, spacing: float = 2.0) -> None:
    label = np.zeros((10, 9, 8), np.uint8)
    label[2 + shift : 6 + shift, 2:6, 2:6] = 3
    write_volume(label, folder / name, affine=np.diag([spacing, 1.0, 1.0, 1.0]))


def test_a_cube_shifted_by_one_voxel_has_the_expected_dice_and_distance(tmp_path: Path) -> None:
    write(tmp_path / "ref", "a.nii.gz")
    write(tmp_path / "pred", "a.nii.gz", shift=1)
    [scores] = evaluate_pairs(pair_files(tmp_path / "pred", tmp_path / "ref"), labels=LABELS)
    # 3 of 4 slices overlap; the axis of the shift has 2 mm
    assert scores["classes"]["liver"]["dice"] == pytest.approx(0.75)
    assert scores["classes"]["liver"]["hd95_mm"] == pytest.approx(2.0)


def test_files_pair_by_name_and_other_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "ref", "a.nii.gz")
    write(tmp_path / "ref", "b.nii.gz")
    write(tmp_path / "pred", "a.nii")
    write(tmp_path / "pred", "a_prob.nii.gz")
    (tmp_path / "pred" / "plans.json").write_text("{}")
    assert [pair.name for pair in pair_files(tmp_path / "pred", tmp_path / "ref")] == ["a"]


def test_a_prediction_without_reference_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    write(tmp_path / "ref", "a.nii.gz")
    with pytest.raises(DataError, match="pred"):
        pair_files(tmp_path / "pred", tmp_path / "ref")
    write(tmp_path / "pred", "z.nii.gz")
    with pytest.raises(DataError, match="z"):
        pair_files(tmp_path / "pred", tmp_path / "ref")


def test_different_grids_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "ref", "a.nii.gz", spacing=2.0)
    write(tmp_path / "pred", "a.nii.gz", spacing=2.5)
    with pytest.raises(GeometryError, match="different grids"):
        list(evaluate_pairs(pair_files(tmp_path / "pred", tmp_path / "ref"), labels=LABELS))


def test_voxels_without_annotation_count_as_background(tmp_path: Path) -> None:
    """In scribbles 0 is not annotated, 1 background, 3 liver."""
    ref = np.zeros((6, 6, 6), np.uint8)
    ref[:, :3], ref[:2, :3] = 1, 3
    pred = np.ones((6, 6, 6), np.uint8)
    pred[:2] = 3
    write_volume(ref, tmp_path / "ref" / "a.nii.gz")
    write_volume(pred, tmp_path / "pred" / "a.nii.gz")
    pairs = pair_files(tmp_path / "pred", tmp_path / "ref")
    [scores] = evaluate_pairs(pairs, labels={"background": 1, "liver": 3}, ignore=0)
    assert scores["classes"]["liver"]["dice"] == 1.0
