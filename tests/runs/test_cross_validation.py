"""Folds are trained one after the other, evaluated out of fold, and joined into one bundle."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from small import SMALL_2D, classes_of, untrained_run

from medunet.bundle import find_bundle, verify_bundle
from medunet.datasets import open_dataset
from medunet.errors import ConfigError, DataError
from medunet.io import read_volume
from medunet.prediction import ClassRule, Predictor
from medunet.runs import CrossValidation, PreparedRun, evaluate_bundle, train_folds
from medunet.runs import folds as cross_validation
from medunet.runs.ensemble import write_ensemble
from medunet.transforms import Components, clean_labels

# MONAI and ignite warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")
SMALL: dict[str, Any] = {**SMALL_2D, "epochs": 1, "folds": 2}  # as of the fixture folds_2d


def cross_validate(data: Path, output: Path, *, changes: dict[str, Any] = SMALL, **options: Any) -> CrossValidation:
    return train_folds(find_bundle("unet_2d"), data, output, changes=changes, device="cpu", tracking_uri="", **options)


@pytest.fixture
def copy(folds_2d: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folds_2d, tmp_path / "copy"))


def test_every_case_is_evaluated_by_the_fold_that_held_it_out(folds_2d: Path, cells: Path) -> None:
    names = sorted(case.name for case in open_dataset(cells).cases)
    with (folds_2d / "out_of_fold" / "metrics.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == names
    for fold in (0, 1):
        predicted = sorted(path.stem for path in (folds_2d / f"fold_{fold}" / "predictions").iterdir())
        assert predicted == names[fold::2]
    decision = json.loads((folds_2d / "docs" / "cross_validation.json").read_text())
    assert decision["cases"] == 4
    assert [rule["name"] for rule in decision["postprocessing"]] == ["cell"]
    card = (folds_2d / "docs" / "README.md").read_text()
    assert "## Cross-validation" in card
    assert "## Results" not in card  # those of a single fold


def test_an_ensemble_is_not_evaluated_on_its_training_cases(folds_2d: Path, cells: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out_of_fold"):
        evaluate_bundle(folds_2d, cells, tmp_path)
    assert evaluate_bundle(folds_2d, cells, tmp_path, section="all", device="cpu")["cases"] == 4
    with pytest.raises(ConfigError, match="cannot be trained"):
        train_folds(folds_2d, cells, tmp_path / "again", device="cpu")


def test_a_second_call_keeps_finished_folds(copy: Path, cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "train_run", lambda *_, **__: pytest.fail("trained again"))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("fold_*/predictions/*")}
    again = cross_validate(cells, copy)
    assert [outcome.status for outcome in again.folds] == ["there already", "there already"]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("fold_*/predictions/*")} == before
    assert again.is_whole
    with pytest.raises(DataError, match="seed: 2, there 0"):
        cross_validate(cells, copy, changes={**SMALL, "seed": 2})


def test_a_fold_that_fails_is_reported_and_the_others_continue(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, models = cross_validation.train_run, tmp_path / "out" / "models"

    def fail_first(run: PreparedRun, **options: Any) -> Any:
        if run.folder.name == "fold_0":
            raise DataError("loss is nan", file="case_1")
        return train(run, **options)

    monkeypatch.setattr(cross_validation, "train_run", fail_first)
    result = cross_validate(cells, tmp_path / "out")
    assert [outcome.status for outcome in result.folds] == ["failed", "trained"]
    assert result.folds[0].error == "case_1: loss is nan"
    assert not result.is_whole
    assert result.summary is not None and result.summary["cases"] == 2
    assert [path.name for path in models.glob("*.pt")] == ["fold_1.pt"]
    # the same call retries the failed fold and joins both
    monkeypatch.setattr(cross_validation, "train_run", train)
    again = cross_validate(cells, tmp_path / "out")
    assert [outcome.status for outcome in again.folds] == ["trained", "there already"]
    assert sorted(path.name for path in models.glob("*.pt")) == ["fold_0.pt", "fold_1.pt"]


def test_predictions_of_earlier_weights_are_not_evaluated(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "train_run", lambda *_, **__: None)
    for run, is_finished in ((tmp_path / "fold_0", False), (copy / "fold_0", True)):
        (run / "predictions").mkdir(parents=True, exist_ok=True)
        (run / "predictions" / "old.txt").touch()
        cross_validation.train_fold(0, PreparedRun(run, {"train": {"epochs": 1}}), "cpu", "")
        assert (run / "predictions" / "old.txt").exists() is is_finished


def test_the_ensemble_bundle_is_the_mean_of_the_folds_and_postprocesses(volumes: Path, tmp_path: Path) -> None:
    labels = open_dataset(volumes).labels
    runs = {fold: untrained_run(tmp_path / f"run_{fold}", seed=fold, **classes_of(volumes)) for fold in (0, 3)}
    images = [case.images[0] for case in open_dataset(volumes).cases[:2]]
    (tmp_path / "images").mkdir()
    for image in images:
        (tmp_path / "images" / image.name).symlink_to(image)
    plain = Predictor(runs[0], ensemble=[runs[3]], output_dir=tmp_path / "plain", device="cpu")
    maps = [np.asarray(read_volume(plain.predict_case(image)).image[0]) for image in images]
    # random weights predict components of every size: the rule is for the class with most of them
    values = {value: name for name, value in labels.items() if value}
    value = max(values, key=lambda v: min(len(Components.of(label_map == v).voxels) for label_map in maps))
    name = values[value]
    rule = ClassRule(name, list(labels).index(name), value, keep_largest=True, min_size=30.0, is_kept=True)
    write_ensemble(tmp_path / "out", runs, rules=[rule], decision={"cases": 2})
    assert {check: fault for check, fault in verify_bundle(tmp_path / "out").items() if fault} == {}
    joined = Predictor(tmp_path / "out", output_dir=tmp_path / "joined", device="cpu", probabilities=True)
    workflow = ConfigWorkflow(
        config_file=str(tmp_path / "out" / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(tmp_path / "out"),
        dataset_dir=str(tmp_path / "images"),
        prediction_dir=str(tmp_path / "monai"),
        device=torch.device("cpu"),
    )
    workflow.initialize()
    workflow.run()
    for image, label_map in zip(images, maps, strict=True):
        written = read_volume(joined.predict_case(image))
        size = float(np.prod(written.record.geometry.spacing_mm))
        expected = clean_labels(label_map, {value: (True, 30.0)}, voxel_size=size)
        assert (expected != label_map).any()
        np.testing.assert_array_equal(np.asarray(written.image[0]), expected)
        np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "monai" / image.name).image[0]), expected)
        file = tmp_path / "joined" / f"{image.name.removesuffix('.nii.gz')}_prob.nii.gz"
        probabilities = np.asarray(read_volume(file, channels=len(labels)).image)
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-4)
