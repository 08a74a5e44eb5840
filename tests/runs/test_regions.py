"""Overlapping regions from the data set to the label map and its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from monai.bundle import ConfigWorkflow

from medunet.bundle import find_bundle, plan_bundle, verify_bundle
from medunet.config import read_json
from medunet.datasets import open_dataset
from medunet.errors import ConfigError
from medunet.io import read_volume, write_volume
from medunet.metrics import evaluate_case
from medunet.prediction import ClassRule, Predictor
from medunet.reports import class_colours
from medunet.runs import evaluate_bundle, train_bundle, train_folds
from medunet.runs.ensemble import write_ensemble
from medunet.transforms import clean_regions

pytestmark = pytest.mark.filterwarnings("ignore")

REGIONS = {"background": 0, "whole": [1, 2, 5], "core": [2, 5], "enhancing": 5}
ORDER = [1, 2, 5]

SHORT: dict[str, Any] = {
    "steps_per_epoch": 20,
    "val_interval": 4,
    "epochs": 4,
    "batch_size": 2,
    "learning_rate": 0.02,
    "augment::deform::elastic_prob": 0.0,
    "tracking_uri": "",
}


def write_tumours(root: Path, *, cases: int = 4, ignore: bool = False) -> Path:
    """Balls within balls, the brighter the deeper, each within 24 x 22 x 20 voxels of 1 x 1 x 1.5 mm."""
    rng = np.random.default_rng(0)
    size = (24, 22, 20)
    affine = np.diag([-1.0, 1.0, 1.5, 1.0])
    for case in range(cases):
        middle = np.array(size) / 2 + rng.uniform(-2, 2, 3)
        distance = np.linalg.norm((np.moveaxis(np.indices(size), 0, -1) - middle) * [1, 1, 1.5], axis=-1)
        label = np.zeros(size, np.uint8)
        for value, radius in ((1, 9.0), (2, 6.5), (5, 4.0)):
            label[distance < radius + rng.uniform(-0.5, 0.5)] = value
        image = np.select([label == 1, label == 2, label == 5], [1.0, 2.0, 3.0], 0.0) + rng.normal(0, 0.2, size)
        if ignore:
            label[:4] = 9
        write_volume(label, root / "labelsTr" / f"c_{case}.nii.gz", affine=affine)
        write_volume(image.astype(np.float32), root / "imagesTr" / f"c_{case}_0000.nii.gz", affine=affine)
    labels = {**REGIONS, **({"ignore": 9} if ignore else {})}
    manifest = {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": ORDER, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(manifest))
    return root


def short(bundle: Path, **more: Any) -> dict[str, Any]:
    levels = len(read_json(bundle / "configs" / "train.json")["network_def"]["channels"])
    return {**SHORT, "network_def::channels": [8] * levels, **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Data, a run of a planned bundle, and what training came to."""
    root = tmp_path_factory.mktemp("regions")
    data = write_tumours(root / "data")
    plan_bundle(data, root / "bundle", device="cpu", measure=False)
    tracked = {"tracking_uri": f"sqlite:///{root}/mlruns.db", "tracking_model": False, "system_metrics": False}
    changes = short(root / "bundle", **tracked)
    result = train_bundle(root / "bundle", data, root / "run", changes=changes, device="cpu")
    return data, root / "run", result


def test_a_planned_bundle_of_regions_verifies_and_says_so(trained: tuple[Path, Path, Any]) -> None:
    _, run, _ = trained
    assert {check: fault for check, fault in verify_bundle(run).items() if fault} == {}
    outputs = read_json(run / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "whole", "1": "core", "2": "enhancing"}
    docs = (run / "docs" / "README.md").read_text()
    assert "[1, 2, 5] whole, [2, 5] core, [5] enhancing" in docs
    assert "| `regions_class_order` | `[1, 2, 5]` | classes that overlap" in docs


def test_training_learns_every_region(trained: tuple[Path, Path, Any]) -> None:
    _, _, result = trained
    assert list(result.kept_dice) == ["whole", "core", "enhancing"]
    assert min(result.kept_dice.values()) > 0.7


def test_a_label_map_is_written_and_measured_region_by_region(trained: tuple[Path, Path, Any], tmp_path: Path) -> None:
    data, run, result = trained
    summary = evaluate_bundle(run, data, tmp_path, device="cpu")
    assert list(summary["classes"]) == ["whole", "core", "enhancing"]
    measured = {name: entry["scores"]["dice"]["mean"] for name, entry in summary["classes"].items()}
    assert measured == pytest.approx(result.kept_dice, abs=0.05)  # on the source grid, and on the network's
    (case,) = [case for case in open_dataset(data).cases if (tmp_path / "predictions" / f"{case.name}.nii.gz").exists()]
    found, wanted = read_volume(tmp_path / "predictions" / f"{case.name}.nii.gz"), read_volume(case.label)
    assert found.record.geometry.is_close(wanted.record.geometry)
    assert set(np.unique(found.image)) == {0, 1, 2, 5}
    for name, values in {"whole": [1, 2, 5], "core": [2, 5], "enhancing": [5]}.items():
        pred, ref = (np.isin(volume.image, values) for volume in (found, wanted))
        dice = 2 * (pred & ref).sum() / (pred.sum() + ref.sum())
        assert measured[name] == pytest.approx(dice)


def test_worst_median_and_best_case_are_drawn_with_a_line_a_region(trained: tuple[Path, Path, Any]) -> None:
    _, run, _ = trained
    drawn = sorted(run.parent.glob("mlruns/**/validation/epoch_*_worst.png"))
    assert drawn
    pixels = np.asarray(PIL.Image.open(drawn[-1]).convert("RGB"), int)
    for colour in class_colours(["whole", "core", "enhancing"]).values():
        channels = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (np.abs(pixels - channels).max(axis=-1) < 12).sum() > 100


def test_monais_evaluation_gives_the_same_dice(trained: tuple[Path, Path, Any], tmp_path: Path) -> None:
    data, run, _ = trained
    summary = evaluate_bundle(run, data, tmp_path / "ours", device="cpu")
    workflow = ConfigWorkflow(
        config_file=str(run / "configs" / "evaluate.json"),
        meta_file=str(run / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="evaluating",
        bundle_root=str(run),
        output_dir=str(tmp_path / "theirs"),
    )
    workflow.initialize()
    workflow.run()
    metrics = workflow.parser.get_parsed_content("evaluator").state.metrics
    assert metrics["val_mean_dice"] == pytest.approx(summary["mean_dice"], abs=1e-3)


def test_probabilities_have_one_channel_a_region(trained: tuple[Path, Path, Any], tmp_path: Path) -> None:
    data, run, _ = trained
    image = open_dataset(data).cases[0].images[0]
    plain = Predictor(run, output_dir=tmp_path / "plain", device="cpu").predict_case(image)
    written = Predictor(run, output_dir=tmp_path / "both", device="cpu", probabilities=True).predict_case(image)
    assert np.array_equal(read_volume(plain).image, read_volume(written).image)
    probabilities = np.asarray(read_volume(tmp_path / "both" / "c_0_prob.nii.gz", channels=3).image)
    assert len(probabilities) == 3
    painted = np.zeros(probabilities.shape[1:])
    for channel, value in zip(probabilities, ORDER, strict=True):
        painted[channel > 0.5] = value
    assert (painted == np.asarray(read_volume(plain).image[0])).mean() > 0.9999
    joined = Predictor(run, output_dir=tmp_path / "joined", device="cpu", ensemble=[run]).predict_case(image)
    assert (np.asarray(read_volume(joined).image) == np.asarray(read_volume(plain).image)).mean() > 0.999


def test_shipped_bundles_train_on_regions_too_and_few_images(tmp_path: Path) -> None:
    data = write_tumours(tmp_path / "data", cases=3)
    changes = {**SHORT, "epochs": 1, "val_interval": 1, "steps_per_epoch": 2, "network_def::channels": [4, 8]}
    run = tmp_path / "run"
    result = train_bundle(find_bundle("unet_3d"), data, run, changes=changes, presets=["few"], device="cpu")
    assert result.epochs == 1
    assert read_json(run / "configs" / "train.json")["region_names"] == ["whole", "core", "enhancing"]
    plain = tmp_path / "plain"
    for part in ("imagesTr", "labelsTr"):
        (plain / part).parent.mkdir(exist_ok=True)
        (plain / part).symlink_to(data / part)
    manifest = json.loads((data / "dataset.json").read_text())
    manifest["labels"] = {"background": 0, "a": 1, "b": 2, "c": 5}
    (plain / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="for regions that overlap, the data have none"):
        train_bundle(run, plain, tmp_path / "other", device="cpu")


def test_folds_of_regions_are_joined_and_cleaned(tmp_path: Path) -> None:
    data = write_tumours(tmp_path / "data", cases=4, ignore=True)
    plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False)
    more = {"epochs": 1, "val_interval": 1, "steps_per_epoch": 2, "folds": 2}
    changes = short(tmp_path / "bundle", **more)
    output = tmp_path / "folds"
    result = train_folds(tmp_path / "bundle", data, output, changes=changes, device="cpu")
    assert result.is_whole
    assert list(result.summary["classes"] if result.summary else ()) == ["whole", "core", "enhancing"]
    assert [rule.name for rule in result.rules] == ["whole", "core", "enhancing"]
    assert {check: fault for check, fault in verify_bundle(output).items() if fault} == {}
    written = Predictor(output, output_dir=tmp_path / "out", device="cpu").predict_case(
        open_dataset(data).cases[0].images[0]
    )
    assert set(np.unique(read_volume(written).image)) <= {0, 1, 2, 5}

    # the bundle cleans as the rules say
    image = open_dataset(data).cases[0].images[0]
    runs = {fold: output / f"fold_{fold}" for fold in (0, 1)}
    plain = Predictor(runs[0], ensemble=[runs[1]], output_dir=tmp_path / "plain", device="cpu").predict_case(image)
    rule = ClassRule("core", 1, 2, keep_largest=True, min_size=6.0, is_kept=True)
    write_ensemble(tmp_path / "cleaned", runs, rules=[rule], decision={"cases": 4})
    assert {check: fault for check, fault in verify_bundle(tmp_path / "cleaned").items() if fault} == {}
    cleaned = Predictor(tmp_path / "cleaned", output_dir=tmp_path / "out_2", device="cpu").predict_case(image)
    expected = clean_regions(
        np.asarray(read_volume(plain).image[0]), {1: (True, 6.0)}, [[1, 2, 5], [2, 5], [5]], order=ORDER, voxel_size=1.5
    )
    np.testing.assert_array_equal(np.asarray(read_volume(cleaned).image[0]), expected)


def test_regions_are_scored_as_unions() -> None:
    ref = np.array([[0, 1, 2, 5]])
    pred = np.array([[0, 2, 2, 1]])
    labels = {"background": 0, "a": 1, "b": 2, "c": 5}
    scores = evaluate_case(
        pred, ref, spacing_mm=(1, 1), labels=labels, regions={"whole": [1, 2, 5], "core": [2, 5], "enhancing": [5]}
    )
    found = {name: (entry["status"], entry["dice"]) for name, entry in scores["classes"].items()}
    assert found == {"whole": ("both", 1.0), "core": ("both", 0.5), "enhancing": ("missed", 0.0)}
