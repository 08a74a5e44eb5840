"""Overlapping regions from the data set to the label map and its metrics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from small import SMALL_3D, narrow

from medunet.bundle import find_bundle, plan_bundle, verify_bundle
from medunet.config import read_json
from medunet.datasets import open_dataset
from medunet.errors import ConfigError
from medunet.io import read_volume, write_volume
from medunet.metrics import evaluate_case
from medunet.prediction import ClassRule, Predictor
from medunet.runs import evaluate_bundle, train_bundle, train_folds
from medunet.runs.ensemble import write_ensemble
from medunet.transforms import clean_regions

pytestmark = pytest.mark.filterwarnings("ignore")
REGIONS = {"whole": [1, 2, 5], "core": [2, 5], "enhancing": [5]}
ORDER = [1, 2, 5]


def write_tumours(root: Path, *, cases: int = 4, ignore: bool = False) -> Path:
    """Write balls within balls, the brighter the deeper, in 24 x 22 x 20 voxels of 1 x 1 x 1.5 mm."""
    rng = np.random.default_rng(0)
    size = (24, 22, 20)
    affine = np.diag([-1.0, 1.0, 1.5, 1.0])
    for case in range(cases):
        centre = np.array(size) / 2 + rng.uniform(-2, 2, 3)
        distance = np.linalg.norm((np.moveaxis(np.indices(size), 0, -1) - centre) * [1, 1, 1.5], axis=-1)
        label = np.zeros(size, np.uint8)
        for value, radius in ((1, 9.0), (2, 6.5), (5, 4.0)):
            label[distance < radius + rng.uniform(-0.5, 0.5)] = value
        image = np.select([label == 1, label == 2, label == 5], [1.0, 2.0, 3.0], 0.0) + rng.normal(0, 0.2, size)
        if ignore:
            label[:4] = 9
        write_volume(label, root / "labelsTr" / f"c_{case}.nii.gz", affine=affine)
        write_volume(image.astype(np.float32), root / "imagesTr" / f"c_{case}_0000.nii.gz", affine=affine)
    labels = {"background": 0, **REGIONS, **({"ignore": 9} if ignore else {})}
    manifest = {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": ORDER, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Data, a run of a planned bundle, and the result of training."""
    root = tmp_path_factory.mktemp("regions")
    data = write_tumours(root / "data")
    bundle = plan_bundle(data, root / "bundle", device="cpu", measure=False).folder
    levels = len(narrow(bundle)["network_def::channels"])
    long = {"epochs": 4, "steps_per_epoch": 20, "val_interval": 4, "learning_rate": 0.02}
    long |= {"network_def::channels": [8] * levels, "augment::deform::elastic_prob": 0.0}
    changes = narrow(bundle, **long, tracking_uri="")
    return data, root / "run", train_bundle(bundle, data, root / "run", changes=changes, device="cpu")


def test_a_planned_bundle_of_regions_verifies_and_documents_them(trained: tuple[Path, Path, Any]) -> None:
    _, run, _ = trained
    assert {check: fault for check, fault in verify_bundle(run).items() if fault} == {}
    outputs = read_json(run / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
    assert list(outputs["channel_def"].values()) == list(REGIONS)
    docs = (run / "docs" / "README.md").read_text()
    assert "[1, 2, 5] whole, [2, 5] core, [5] enhancing" in docs
    assert "| `regions_class_order` | `[1, 2, 5]` | classes that overlap" in docs


def test_every_region_is_learned_written_and_evaluated(trained: tuple[Path, Path, Any], tmp_path: Path) -> None:
    data, run, result = trained
    assert list(result.kept_dice) == list(REGIONS)
    assert min(result.kept_dice.values()) > 0.7
    summary = evaluate_bundle(run, data, tmp_path, device="cpu")
    measured = {name: entry["scores"]["dice"]["mean"] for name, entry in summary["classes"].items()}
    assert list(measured) == list(REGIONS)
    assert measured == pytest.approx(result.kept_dice, abs=0.05)  # on the source grid, and on the network's
    (case,) = [case for case in open_dataset(data).cases if (tmp_path / "predictions" / f"{case.name}.nii.gz").exists()]
    written, reference = read_volume(tmp_path / "predictions" / f"{case.name}.nii.gz"), read_volume(case.label)
    assert written.record.geometry.is_close(reference.record.geometry)
    assert set(np.unique(written.image)) == {0, 1, 2, 5}
    for name, values in REGIONS.items():
        pred, ref = (np.isin(volume.image, values) for volume in (written, reference))
        assert measured[name] == pytest.approx(2 * (pred & ref).sum() / (pred.sum() + ref.sum()))
    workflow = ConfigWorkflow(
        config_file=str(run / "configs" / "evaluate.json"),
        meta_file=str(run / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="evaluating",
        bundle_root=str(run),
        output_dir=str(tmp_path / "monai"),
    )
    workflow.initialize()
    workflow.run()
    metrics = workflow.parser.get_parsed_content("evaluator").state.metrics
    assert metrics["val_mean_dice"] == pytest.approx(summary["mean_dice"], abs=1e-3)


def test_probabilities_have_one_channel_per_region(trained: tuple[Path, Path, Any], tmp_path: Path) -> None:
    data, run, _ = trained
    image = open_dataset(data).cases[0].images[0]

    def predicted(name: str, **options: Any) -> Any:
        predictor = Predictor(run, output_dir=tmp_path / name, device="cpu", **options)
        return np.asarray(read_volume(predictor.predict_case(image)).image[0])

    plain = predicted("plain")
    assert np.array_equal(plain, predicted("both", probabilities=True))
    probabilities = np.asarray(read_volume(tmp_path / "both" / "c_0_prob.nii.gz", channels=3).image)
    painted = np.zeros(probabilities.shape[1:])
    for channel, value in zip(probabilities, ORDER, strict=True):
        painted[channel > 0.5] = value
    assert (painted == plain).mean() > 0.9999
    assert (predicted("joined", ensemble=[run]) == plain).mean() > 0.999


def test_a_shipped_bundle_trains_on_regions_of_few_images(tmp_path: Path) -> None:
    data, run, plain = write_tumours(tmp_path / "data", cases=3), tmp_path / "run", tmp_path / "plain"
    changes = {**SMALL_3D, "epochs": 1, "tracking_uri": ""}
    del changes["patch_size"]
    train_bundle(find_bundle("unet_3d"), data, run, changes=changes, presets=["few"], device="cpu")
    assert read_json(run / "configs" / "train.json")["region_names"] == list(REGIONS)
    plain.mkdir()
    for part in ("imagesTr", "labelsTr"):
        (plain / part).symlink_to(data / part)
    manifest = json.loads((data / "dataset.json").read_text())
    manifest["labels"] = {"background": 0, "a": 1, "b": 2, "c": 5}
    (plain / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="for overlapping regions, the data have none"):
        train_bundle(run, plain, tmp_path / "other", device="cpu")


def test_folds_of_regions_are_joined_and_cleaned(tmp_path: Path) -> None:
    data = write_tumours(tmp_path / "data", ignore=True)
    bundle, output = plan_bundle(data, tmp_path / "bundle", device="cpu", measure=False).folder, tmp_path / "folds"
    changes = narrow(bundle, folds=2, tracking_uri="")
    result = train_folds(bundle, data, output, changes=changes, device="cpu")
    assert result.is_whole
    assert list(result.summary["classes"] if result.summary else ()) == list(REGIONS)
    assert [rule.name for rule in result.rules] == list(REGIONS)
    assert {check: fault for check, fault in verify_bundle(output).items() if fault} == {}
    # the bundle applies the rules
    image = open_dataset(data).cases[0].images[0]
    runs = {fold: output / f"fold_{fold}" for fold in (0, 1)}
    plain = Predictor(runs[0], ensemble=[runs[1]], output_dir=tmp_path / "plain", device="cpu").predict_case(image)
    rule = ClassRule("core", 1, 2, keep_largest=True, min_size=6.0, is_kept=True)
    write_ensemble(tmp_path / "cleaned", runs, rules=[rule], decision={"cases": 4})
    assert {check: fault for check, fault in verify_bundle(tmp_path / "cleaned").items() if fault} == {}
    cleaned = Predictor(tmp_path / "cleaned", output_dir=tmp_path / "out", device="cpu").predict_case(image)
    label_map, regions = np.asarray(read_volume(plain).image[0]), list(REGIONS.values())
    expected = clean_regions(label_map, {1: (True, 6.0)}, regions, order=ORDER, voxel_size=1.5)
    np.testing.assert_array_equal(np.asarray(read_volume(cleaned).image[0]), expected)


def test_regions_are_scored_as_unions() -> None:
    pred, ref = np.array([[0, 2, 2, 1]]), np.array([[0, 1, 2, 5]])
    labels = {"background": 0, "a": 1, "b": 2, "c": 5}
    scores = evaluate_case(pred, ref, spacing_mm=(1, 1), labels=labels, regions=REGIONS)
    result = {name: (entry["status"], entry["dice"]) for name, entry in scores["classes"].items()}
    assert result == {"whole": ("both", 1.0), "core": ("both", 0.5), "enhancing": ("missed", 0.0)}
