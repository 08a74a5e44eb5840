"""Images in the plane that programs store as volumes of one slice are 2D images, from check to result."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import Capture, Medunet
from small import SMALL_2D

from medunet.bundle import find_bundle, plan_bundle
from medunet.datasets import check_dataset, open_dataset
from medunet.io import read_label, read_volume, write_volume
from medunet.prediction import Pair, Predictor
from medunet.prediction.evaluation import read_pair
from medunet.runs import evaluate_bundle, train_bundle

pytestmark = pytest.mark.filterwarnings("ignore")
AFFINE = np.array([[0.7, 0, 0, -20], [0, -0.7, 0, 31], [0, 0, 5, 112], [0, 0, 0, 1]])
SHAPE = (40, 48, 1)
SHORT = {**SMALL_2D, "epochs": 1, "network_def::strides": [2], "tracking_uri": ""}
del SHORT["patch_size"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs; NIfTI files of `(x, y, 1)`."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    x, y, _ = np.ogrid[: SHAPE[0], : SHAPE[1], :1]
    for number in range(6):
        disc = np.hypot(x - rng.integers(12, 28), y - rng.integers(12, 36)) < 9
        image = rng.normal(100 * disc, 20).astype(np.float32)
        write_volume(image, root / "images" / f"{number}.nii.gz", affine=AFFINE)
        write_volume(disc.astype(np.uint8), root / "labels" / f"{number}.nii.gz", affine=AFFINE)
    return root


def test_single_slices_are_planned_trained_predicted_and_evaluated_in_2d(data: Path, tmp_path: Path) -> None:
    bundle = plan_bundle(data, tmp_path / "bundle", measure=False).folder
    run = train_bundle(bundle, data, tmp_path / "run", changes=SHORT).run
    assert json.loads((run / "configs" / "inference.json").read_text())["spatial_dims"] == 2
    (first, *_) = open_dataset(data).cases
    written = Predictor(run, output_dir=tmp_path / "out", probabilities=True).predict_case(first.images)
    result, source = nib.load(written), nib.load(first.images[0])
    assert result.shape == source.shape == SHAPE
    np.testing.assert_allclose(result.affine, source.affine, atol=1e-5)
    assert np.load(tmp_path / "out" / "0_prob.npy").shape == (2, *SHAPE[:2])
    written = Predictor(run, output_dir=tmp_path / "slicer", result_format="seg.nrrd").predict_case(first.images)
    assert read_volume(written).image.shape == (1, *SHAPE)
    assert evaluate_bundle(run, data, tmp_path / "evaluation")["cases"] == 2
    metrics = (tmp_path / "evaluation" / "metrics.json").read_text()
    assert "area_ref_mm2" in metrics and "volume_ref_ml" not in metrics


def test_slicer_segmentations_are_placed_on_the_slice(data: Path, tmp_path: Path) -> None:
    for case in open_dataset(data).cases:
        label = read_volume(case.label).image[0].numpy().astype(np.uint8)
        write_volume(label, tmp_path / "labels" / f"{case.name}.seg.nrrd", affine=AFFINE, labels={"disc": 1})
    (tmp_path / "images").symlink_to(data / "images")
    drawn = open_dataset(tmp_path)
    assert drawn.spatial_dims == 2
    assert not [finding for finding in check_dataset(drawn, level="voxels") if finding.severity == "error"]
    for case in drawn.cases:
        expected = read_volume(data / "labels" / f"{case.name}.nii.gz", spatial_dims=2).image
        image = read_volume(case.images[0], spatial_dims=2)
        np.testing.assert_array_equal(read_label(case.label, reference=image.record.geometry).image, expected)
        pred, ref = read_pair(Pair(case.name, case.label, data / "labels" / f"{case.name}.nii.gz"), {"disc": 1})
        assert pred.image.shape == ref.image.shape == (1, *SHAPE[:2])


def test_a_shipped_bundle_trains_on_single_slices(data: Path, tmp_path: Path) -> None:
    run = train_bundle(find_bundle("unet_2d"), data, tmp_path / "run", changes=SHORT).run
    assert json.loads((run / "configs" / "train.json").read_text())["patch_size"] == [48, 48]


def test_check_reports_areas(data: Path, medunet: Medunet, capsys: Capture) -> None:
    assert medunet("check", data) == 0
    out = capsys.readouterr().out
    assert "2D" in out and "mm²" in out


def test_one_file_per_channel_is_one_image(tmp_path: Path) -> None:
    for number in range(2):
        for channel in range(2):
            write_volume(np.ones(SHAPE, np.float32), tmp_path / "imagesTr" / f"{number}_{channel:04d}.nii.gz")
        label = np.eye(*SHAPE[:2], dtype=np.uint8)[..., None]
        write_volume(label, tmp_path / "labelsTr" / f"{number}.nii.gz")
    dataset = open_dataset(tmp_path)
    assert (dataset.spatial_dims, len(dataset.channels)) == (2, 2)
