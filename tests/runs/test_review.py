"""Calibrated reviews of a run, and labels that disagree with its predictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Medunet
from monai.inferers import SimpleInferer
from PIL import Image

from medunet.bundle import specialise
from medunet.config import apply, read_json, to_json
from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.errors import ConfigError, DataError
from medunet.inferers import ProbabilityInferer
from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor
from medunet.prediction.configuration import CALIBRATION, TEMPERATURE
from medunet.reports.contact_sheet import CAPTION, FRAMES, GAP, TILE
from medunet.runs.audit import audit_labels, diagnose
from medunet.runs.ensemble import write_ensemble
from medunet.runs.review import calibrate, fit_temperature, write_reviews
from medunet.trust import judge, record_weights
from tests.support.small import classes_of, untrained_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cells"
    write_phantom_dataset(folder, kind="cells", cases=16, test_cases=1, size=(24, 24))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {"dataset_dir": str(data), "folds": 2, **classes_of(data)}
    folder = untrained_run(tmp_path_factory.mktemp("run") / "run", bundle="unet_2d", **values)
    record_weights(folder, to_text=to_json)
    return folder


def test_a_calibrated_run_states_expected_dice_flags_and_calibrated_probabilities(
    run: Path, data: Path, tmp_path: Path
) -> None:
    document = calibrate(run, data, device="cpu")
    assert (document["cases"], document["source"]) == (8, "validation cases of fold 0")
    assert json.loads((run / "docs" / "review.json").read_text()) == json.loads(json.dumps(document))
    assert "## Expected Dice" in (run / "docs" / "README.md").read_text()
    assert (judge(run).is_trusted, judge(run).weights) == (True, ("model.pt", "model.safetensors"))
    temperature = document["probabilities"]["temperature"]
    assert read_json(run / "configs" / "inference.json")["prob_inferer"]["temperature"] == temperature
    predictor = Predictor(run, output_dir=tmp_path, device="cpu", review=True)
    images = sorted(data.glob("imagesTr/*"))[:3]
    results = list(predictor.predict(images))
    write_reviews(tmp_path, results[:2], predictor.structures)
    page = write_reviews(tmp_path, results[2:], predictor.structures)
    cases = json.loads((tmp_path / "review.json").read_text())["cases"]
    assert sorted(case["case"] for case in cases) == sorted(result.name for result in results)
    assert [case["score"] for case in cases] == sorted(case["score"] for case in cases)
    assert all(case["low"] <= case["expected_dice"] <= case["high"] for case in cases)
    rows = (tmp_path / "review.csv").read_text().splitlines()
    assert rows[0] == "case,class,agreement,expected_dice,low,high,flags"
    assert len(rows) == 1 + 3 * len(predictor.structures)
    assert page.read_text().count("<img") == 1
    noise = np.random.default_rng(0).normal(size=(1, 24, 24)).astype(np.float32)
    assert any(flag.startswith("intensity") for flag in predictor.decide_array(noise**9)["review"].flags)


def test_a_calibration_is_neither_copied_nor_in_the_way_of_further_training(
    run: Path, data: Path, tmp_path: Path
) -> None:
    changes = {"dataset_dir": str(data), "epochs": 3}
    first = specialise(run, tmp_path / "first", changes)
    (first / CALIBRATION).write_text("{}")
    inference = first / "configs" / "inference.json"
    usual = inference.read_text()
    inference.write_text(to_json(apply(read_json(inference), {TEMPERATURE: 2.0})))
    copy = specialise(first, tmp_path / "copy", {})
    assert (copy / "configs" / "inference.json").read_text() == usual
    assert not (copy / CALIBRATION).exists()
    specialise(run, first, changes)
    assert inference.read_text() == usual


def test_a_cross_validation_is_calibrated_by_the_folds_that_held_its_cases_out(data: Path, tmp_path: Path) -> None:
    values = {"dataset_dir": str(data), "folds": 2, **classes_of(data)}
    folds = {fold: tmp_path / f"fold_{fold}" for fold in (0, 1)}
    for fold, folder in folds.items():
        untrained_run(folder, bundle="unet_2d", seed=fold, **values, fold=fold)
    write_ensemble(tmp_path, folds, rules=(), decision={"cases": 16})
    document = calibrate(tmp_path, data, device="cpu")
    assert (document["cases"], document["source"]) == (16, "out-of-fold cases")
    assert not (folds[0] / "docs" / "review.json").exists()
    review = Predictor(tmp_path, device="cpu", review=True).decide(next(data.glob("imagesTr/*")))["review"]
    assert review.is_calibrated


def test_too_few_cases_and_a_run_without_predictions_are_errors(run: Path, data: Path, tmp_path: Path) -> None:
    few = shutil.copytree(data, tmp_path / "few")
    for path in [*few.glob("imagesTr/*")][8:]:
        path.unlink()
        (few / "labelsTr" / path.name).unlink()
    manifest = json.loads((few / "dataset.json").read_text())
    manifest["training"] = [pair for pair in manifest["training"] if (few / pair["image"]).is_file()]
    (few / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="too few held-out cases"):
        calibrate(run, few, device="cpu")
    with pytest.raises(DataError, match="no predictions"):
        audit_labels(open_dataset(data), run)
    manifest["labels"]["ignore"] = 9
    (few / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="labels of all voxels"):
        calibrate(run, few, device="cpu")


def test_a_temperature_repairs_overconfident_probabilities_and_changes_no_label() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(40, 500, 3)) * 2
    chance = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    true = random.random((40, 500, 1)) < chance.cumsum(axis=-1)
    true &= ~np.roll(true, 1, axis=-1) | (np.arange(3) == 0)
    fitted = fit_temperature([(3 * one, of) for one, of in zip(logits, true, strict=True)])
    assert fitted["temperature"] == pytest.approx(3, rel=0.1)
    assert fitted["after"]["ece"] < 0.02 < fitted["before"]["ece"]
    assert fit_temperature(list(zip(logits, true, strict=True)))["temperature"] == 1
    network, image = torch.nn.Conv2d(1, 3, 3, padding=1), torch.rand(1, 1, 9, 9)
    with torch.inference_mode():
        usual, soft = (
            ProbabilityInferer(SimpleInferer(), to_source=False, temperature=t)(image, network) for t in (1.0, 3.0)
        )
    assert torch.equal(usual.argmax(1), soft.argmax(1))
    assert torch.allclose(torch.softmax(usual.log() / 3, dim=1), soft, atol=1e-6)
    with pytest.raises(ConfigError, match="temperature"):
        ProbabilityInferer(SimpleInferer(), temperature=0)


def test_wrong_labels_are_found_with_their_cause() -> None:
    pred = np.zeros((12, 14, 10), np.int64)
    pred[2:6, 3:6, 2:5], pred[6:9, 3:6, 2:5] = 1, 2
    classes = {"head": [1], "tail": [2]}
    swapped = np.where(pred == 1, 2, np.where(pred == 2, 1, 0))
    expected = {
        "head and tail may be swapped": swapped,
        "tail may be missing in the label": np.where(pred == 2, 0, pred),
        "the label may be mirrored along axis 1": np.flip(pred, 1),
        "the label may be shifted by [3 0 1] voxels": np.roll(pred, (3, 1), (0, 2)),
        "": pred,
    }
    assert [diagnose(pred, ref, classes)[1] for ref in expected.values()] == list(expected)


def test_an_audit_lists_and_draws_the_worst_label_first(
    run: Path, data: Path, tmp_path: Path, medunet: Medunet
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    predictions = copy / "evaluation" / "predictions"
    shutil.copytree(data / "labelsTr", predictions)
    dataset = open_dataset(data)
    assert audit_labels(dataset, copy) == []
    worst = dataset.cases[5]
    voxels = read_volume(worst.label).image.numpy()[0]
    write_volume(np.roll(voxels, 7, 0), next(predictions.glob(f"{worst.name}*")), affine=None, overwrite=True)
    (finding,) = audit_labels(dataset, copy)
    assert (finding.case, finding.severity) == (worst.name, "warning")
    assert finding.cause.startswith(f"{worst.name}: Dice 0.")
    assert medunet("check", data, "--run", copy, "--sheet", tmp_path / "sheet.png") == 0
    config = copy / "configs" / "evaluate.json"
    config.write_text(to_json(apply(read_json(config), {"instances": True})))
    assert medunet("check", data, "--run", copy) == 2
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    top, tile = CAPTION + GAP, slice(CAPTION + GAP, CAPTION + GAP + TILE)
    assert sheet[top - 2, GAP].tolist() == list(FRAMES["warning"])  # of the first case; beside it is its prediction
    label, pred = (sheet[tile, GAP + n * (TILE + GAP) + 8 : (n + 1) * (TILE + GAP) - 8] for n in (0, 1))
    assert label.std() > 0
    assert pred.std() > 0
    assert (label != pred).any()
