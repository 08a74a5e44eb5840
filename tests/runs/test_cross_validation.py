"""Folds are trained one after the other, measured out of fold, and joined into one bundle."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from small import SMALL_2D

from medunet.bundle import find_bundle, specialise, verify_bundle
from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.errors import ConfigError, DataError
from medunet.io import read_volume
from medunet.prediction import ClassRule, Predictor
from medunet.runs import CrossValidation, PreparedRun, evaluate_bundle, train_folds
from medunet.runs import folds as cross_validation
from medunet.runs.ensemble import write_ensemble
from medunet.transforms import Components, clean_labels

# MONAI and ignite warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL: dict[str, Any] = {
    **SMALL_2D,
    "epochs": 1,
    "folds": 2,
    "tracking_uri": "",
    "autocast_dtype": "float32",  # the fastest of a busy machine is not the same every time
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cells")
    write_phantom_dataset(root, kind="cells", cases=5, test_cases=1, size=(48, 48))
    return root


def cross_validate(data: Path, output: Path, **options: Any) -> CrossValidation:
    return train_folds(find_bundle("unet_2d"), data, output, changes=SMALL, device="cpu", **options)


@pytest.fixture(scope="module")
def whole(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setenv("MEDUNET_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return cross_validate(cells, tmp_path_factory.mktemp("cv") / "out")


def test_every_case_is_measured_by_the_fold_that_did_not_see_it(whole: CrossValidation, cells: Path) -> None:
    assert whole.is_whole
    assert [outcome.status for outcome in whole.folds] == ["trained", "trained"]
    names = sorted(case.name for case in open_dataset(cells).cases)
    with (whole.output / "out_of_fold" / "metrics.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == names
    for fold in (0, 1):
        predicted = sorted(path.stem for path in (whole.output / f"fold_{fold}" / "predictions").iterdir())
        assert predicted == names[fold::2]


def test_the_decision_is_in_the_bundle(whole: CrossValidation) -> None:
    decision = json.loads((whole.output / "docs" / "cross_validation.json").read_text())
    assert decision["cases"] == 5
    assert [rule["name"] for rule in decision["postprocessing"]] == ["cell"]
    assert "## Cross-validation" in (whole.output / "docs" / "README.md").read_text()


def test_the_output_is_a_bundle_that_verifies_and_predicts(whole: CrossValidation, cells: Path, tmp_path: Path) -> None:
    assert {name: fault for name, fault in verify_bundle(whole.output).items() if fault} == {}
    predictor = Predictor(whole.output, output_dir=tmp_path, device="cpu")
    image = open_dataset(cells).cases[0].images[0]
    assert set(np.unique(read_volume(predictor.predict_case(image)).image)) <= {0, 255}
    assert len(predictor.network.network.members) == 2


def test_an_ensemble_is_not_measured_on_what_it_trained_on(whole: CrossValidation, cells: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out_of_fold"):
        evaluate_bundle(whole.output, cells, tmp_path)
    assert evaluate_bundle(whole.output, cells, tmp_path, section="all", device="cpu")["cases"] == 5
    with pytest.raises(ConfigError, match="cannot be trained"):
        train_folds(whole.output, cells, tmp_path / "again", device="cpu")


def test_a_second_call_keeps_what_is_there(
    whole: CrossValidation, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "train_run", lambda *_, **__: pytest.fail("trained again"))
    before = {path: path.stat().st_mtime_ns for path in whole.output.rglob("fold_*/predictions/*")}
    again = cross_validate(cells, whole.output)
    assert [outcome.status for outcome in again.folds] == ["there already", "there already"]
    assert {path: path.stat().st_mtime_ns for path in whole.output.rglob("fold_*/predictions/*")} == before
    assert again.summary == whole.summary


def test_a_fold_that_fails_is_reported_and_the_rest_goes_on(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = cross_validation.train_run

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
    assert [path.name for path in (tmp_path / "out" / "models").glob("*.pt")] == ["fold_1.pt"]
    # the same call tries the failed fold again and joins both
    monkeypatch.setattr(cross_validation, "train_run", train)
    again = cross_validate(cells, tmp_path / "out")
    assert [outcome.status for outcome in again.folds] == ["trained", "there already"]
    assert sorted(path.name for path in (tmp_path / "out" / "models").glob("*.pt")) == ["fold_0.pt", "fold_1.pt"]


def test_ctrl_c_ends_everything(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(run: PreparedRun, **_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "train_run", interrupt)
    result = cross_validate(cells, tmp_path / "out")
    assert result.is_interrupted
    assert [outcome.status for outcome in result.folds] == ["stopped"]
    assert not (tmp_path / "out" / "configs").exists()


def test_what_an_earlier_training_predicted_is_not_measured(
    whole: CrossValidation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights were removed so that it is trained again."""
    monkeypatch.setattr(cross_validation, "train_run", lambda *_, **__: None)
    for run, kept in ((tmp_path / "fold_0", False), (whole.folds[0].run, True)):
        (run / "predictions").mkdir(parents=True, exist_ok=True)
        (run / "predictions" / "old.txt").touch()
        cross_validation.train_fold(0, PreparedRun(run, {"train": {"epochs": 1}}), "cpu", "")
        assert (run / "predictions" / "old.txt").exists() is kept
    (whole.folds[0].run / "predictions" / "old.txt").unlink()


@pytest.mark.parametrize("folds", [[2], [], [-1]])
def test_a_fold_that_does_not_exist_is_refused(cells: Path, tmp_path: Path, folds: list[int]) -> None:
    with pytest.raises(ConfigError, match="no such fold"):
        cross_validate(cells, tmp_path / "out", folds=folds)
    assert not (tmp_path / "out").exists()


def test_runs_of_another_configuration_are_refused(whole: CrossValidation, cells: Path) -> None:
    with pytest.raises(DataError, match="seed: 2, there 0"):
        train_folds(find_bundle("unet_2d"), cells, whole.output, changes={**SMALL, "seed": 2}, device="cpu")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ct")
    write_phantom_dataset(root, kind="ct", cases=2, size=(28, 26, 22))
    return root


def make_run(folder: Path, labels: Mapping[str, int], *, seed: int) -> Path:
    changes = {
        "network_def::channels": [4, 8],
        "patch_size": [16, 16, 16],
        "autocast_dtype": "float32",
        "label_names": list(labels),
        "label_values": list(labels.values()),
    }
    run = specialise(find_bundle("unet_3d"), folder, changes)
    parser = ConfigParser()
    parser.read_config(str(run / "configs" / "inference.json"))
    torch.manual_seed(seed)
    (run / "models").mkdir()
    torch.save({"model": parser.get_parsed_content("network_def").state_dict()}, run / "models" / "model.pt")
    return run


def test_the_ensemble_bundle_is_the_mean_of_the_folds_and_cleans(volumes: Path, tmp_path: Path) -> None:
    labels = open_dataset(volumes).labels
    runs = {fold: make_run(tmp_path / f"run_{fold}", labels, seed=fold) for fold in (0, 3)}
    images = [case.images[0] for case in open_dataset(volumes).cases]
    plain = Predictor(runs[0], ensemble=[runs[3]], output_dir=tmp_path / "plain", device="cpu")
    maps = [np.asarray(read_volume(plain.predict_case(image)).image[0]) for image in images]
    # what chance predicts has components of every size: the class with most of them is cleaned
    values = {value: name for name, value in labels.items() if value}
    value = max(values, key=lambda v: min(len(Components.of(found == v).voxels) for found in maps))
    name = values[value]
    rule = ClassRule(name, list(labels).index(name), value, keep_largest=True, min_size=30.0, is_kept=True)
    write_ensemble(tmp_path / "out", runs, rules=[rule], decision={"cases": 2})
    assert {check: fault for check, fault in verify_bundle(tmp_path / "out").items() if fault} == {}

    joined = Predictor(tmp_path / "out", output_dir=tmp_path / "joined", device="cpu")
    workflow = ConfigWorkflow(
        config_file=str(tmp_path / "out" / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(tmp_path / "out"),
        dataset_dir=str(volumes / "imagesTr"),
        prediction_dir=str(tmp_path / "monai"),
        device=torch.device("cpu"),
    )
    workflow.initialize()
    workflow.run()
    for image, found in zip(images, maps, strict=True):
        written = read_volume(joined.predict_case(image))
        size = float(np.prod(written.record.geometry.spacing_mm))
        expected = clean_labels(found, {value: (True, 30.0)}, voxel_size=size)
        assert (expected != found).any()
        np.testing.assert_array_equal(np.asarray(written.image[0]), expected)
        np.testing.assert_array_equal(np.asarray(read_volume(tmp_path / "monai" / image.name).image[0]), expected)


def test_probabilities_are_written_by_an_ensemble_too(volumes: Path, tmp_path: Path) -> None:
    labels = open_dataset(volumes).labels
    runs = {fold: make_run(tmp_path / f"run_{fold}", labels, seed=fold) for fold in (0, 1)}
    write_ensemble(tmp_path / "out", runs, rules=[], decision={"cases": 2})
    image = open_dataset(volumes).cases[0].images[0]
    Predictor(tmp_path / "out", output_dir=tmp_path / "p", device="cpu", probabilities=True).predict_case(image)
    name = image.name.removesuffix(".nii.gz")
    joined = np.asarray(read_volume(tmp_path / "p" / f"{name}_prob.nii.gz", channels=len(labels)).image)
    np.testing.assert_allclose(joined.sum(axis=0), 1, atol=1e-4)
