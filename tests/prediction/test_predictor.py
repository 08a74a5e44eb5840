"""One case from file to file, with random weights."""

import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError, DataError, GeometryError
from medunet.io import MedunetReader, Pseudonyms, label_names, read_header, read_label, read_volume, write_volume
from medunet.io.isolation import shared_process
from medunet.prediction import Predictor

pytestmark = pytest.mark.filterwarnings("ignore")
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
LABELS = {"background": 0, "anterior": 1, "posterior": 2}


def test_all_formats_contain_the_same_voxels(bundle: Path, tmp_path: Path, make_series: Callable[..., Path]) -> None:
    pytest.importorskip("highdicom")
    series = make_series(tmp_path / "ct", slices=16)
    results = {}
    for result_format in ("nii.gz", "seg.nrrd", "rtstruct"):
        predictor = Predictor(bundle, output_dir=tmp_path / result_format, device="cpu", result_format=result_format)
        path = predictor.predict_case(series)
        assert set(label_names(path) or ()) == set(LABELS)
        results[result_format] = read_label(path, reference=series, labels=LABELS).image[0].numpy()
    assert len(np.unique(results["nii.gz"])) > 1
    assert np.array_equal(results["nii.gz"], results["seg.nrrd"])
    assert np.array_equal(results["nii.gz"], results["rtstruct"])
    assert read_header(tmp_path / "nii.gz" / "ct.nii.gz").geometry.is_close(read_header(series).geometry)


def test_colours_and_codes_of_the_config_reach_the_file(
    bundle: Path, tmp_path: Path, make_series: Callable[..., Path]
) -> None:
    pytest.importorskip("highdicom")
    codes = {"posterior": {"type": ["5366008", "SCT", "Hippocampus"]}}
    options = {"overrides": {"label_colors": {"anterior": [255, 0, 0]}, "label_codes": codes}}
    predictor = Predictor(bundle, output_dir=tmp_path, device="cpu", result_format="rtstruct", **options)
    dataset = pydicom.dcmread(predictor.predict_case(make_series(tmp_path / "ct", slices=16)))
    assert list(dataset.ROIContourSequence[0].ROIDisplayColor) == [255, 0, 0]
    assert dataset.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0].CodeValue == "5366008"


def test_mirrored_and_enlarged_views_are_values_of_the_config(bundle: Path, volume: Path, tmp_path: Path) -> None:
    def probabilities(image: Path, **overrides: list[float]) -> np.ndarray:
        folder = tmp_path / f"{image.parent.name} {overrides}"
        predictor = Predictor(bundle, output_dir=folder, device="cpu", probabilities=True, overrides=overrides)
        return np.asarray(nib.load(predictor.predict_case(image).with_name("case_prob.nii.gz")).dataobj)

    voxels = np.asarray(read_volume(volume).image[0])
    flipped = write_volume(voxels[:, :, ::-1], tmp_path / "flipped" / "case.nii.gz", affine=AFFINE)
    plain, mirrored = probabilities(volume), probabilities(volume, mirror_axes=[2])
    assert not np.allclose(mirrored, plain, atol=1e-4)
    np.testing.assert_allclose(mirrored, (plain + probabilities(flipped)[:, :, ::-1]) / 2, atol=1e-5)
    enlarged = probabilities(volume, mirror_axes=[2], view_scales=[1.5])
    assert not np.allclose(mirrored, enlarged, atol=1e-4)
    both = probabilities(volume, mirror_axes=[2], view_scales=[1.0, 1.5])
    np.testing.assert_allclose(both, (mirrored + enlarged) / 2, atol=1e-5)


def test_an_array_gives_the_result_of_its_file(bundle: Path, tmp_path: Path) -> None:
    affine = np.array([[0.0, -1.5, 0.0, 7.0], [-1.0, 0.0, 0.0, -3.0], [0.0, 0.0, 2.0, 11.0], [0.0, 0.0, 0.0, 1.0]])
    voxels = np.random.default_rng(0).normal(size=(17, 19, 15)).astype(np.float32)
    path = write_volume(voxels, tmp_path / "case.nii.gz", affine=affine)
    predictor = Predictor(str(bundle), device="cpu")
    expected = predictor.decide(str(path))["pred"]
    assert len(np.unique(expected)) > 1
    tensor = MetaTensor(torch.from_numpy(voxels[None]), affine=torch.from_numpy(affine))
    for item in (predictor.decide_array(voxels[None], affine=affine), predictor.decide_array(tensor)):
        assert np.array_equal(item["pred"], expected)
        assert np.allclose(item["pred"].affine, affine)


def test_an_array_without_geometry_is_rejected(bundle: Path) -> None:
    predictor, image = Predictor(bundle, device="cpu"), np.zeros((1, 9, 9, 9), np.float32)
    cases = [(image, None, "an array needs an affine"), (image, np.zeros((4, 4)), "affine")]
    for array, affine, message in [*cases, (np.concatenate([image] * 2), np.eye(4), "does not fit this bundle")]:
        with pytest.raises(GeometryError, match=message):
            predictor.decide_array(array, affine=affine)


def test_missing_folders_lists_and_images_are_errors(bundle: Path, volume: Path, tmp_path: Path) -> None:
    memory = Predictor(bundle, device="cpu")
    for call in (lambda: memory.predict_case(volume), lambda: next(memory.predict([volume]))):
        with pytest.raises(ConfigError, match="output_dir is missing"):
            call()
    with pytest.raises(ConfigError, match="must be a list of images"):
        next(Predictor(bundle, output_dir=tmp_path, device="cpu").predict(str(volume)))
    predictor = Predictor(bundle, output_dir=tmp_path / "out", device="cpu")
    for call in (predictor.predict_case, predictor.decide):
        with pytest.raises(DataError, match=r"absent\.nii\.gz"):
            call(tmp_path / "absent.nii.gz")


SHARED = {"series_uid": "1.2.3", "StudyInstanceUID": "1.2.4", "FrameOfReferenceUID": "1.2.5"}


@pytest.fixture
def two_phases(tmp_path: Path, make_series: Callable[..., Path]) -> Path:
    folder = make_series(tmp_path / "Secret", slices=16, TemporalPositionIdentifier=1, **SHARED)
    for file in make_series(tmp_path / "other", slices=16, TemporalPositionIdentifier=2, **SHARED).iterdir():
        file.rename(folder / f"other_{file.name}")
    return folder


def test_result_refers_to_the_selected_phase_and_warnings_have_the_name_of_the_case(
    bundle: Path, two_phases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("highdicom")
    options = {"device": "cpu", "overrides": {"phase": 1}}
    result = pydicom.dcmread(Predictor(bundle, output_dir=tmp_path / "out", **options).predict_case(two_phases))
    assert result.Modality == "SEG"
    [series] = result.ReferencedSeriesSequence
    images = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, two_phases.iterdir())}
    referred = [images[item.ReferencedSOPInstanceUID] for item in series.ReferencedInstanceSequence]
    assert {header.TemporalPositionIdentifier for header in referred} == {2}
    assert f"{two_phases}: phase 1 of 2 read (TemporalPositionIdentifier 2)" in caplog.messages
    caplog.clear()
    pseudonyms = Pseudonyms()
    Predictor(bundle, output_dir=tmp_path / "b", pseudonyms=pseudonyms, **options).predict_case(two_phases)
    [warning] = [message for message in caplog.messages if "phase 1 of 2" in message]
    assert warning.startswith(pseudonyms.code(two_phases))
    assert "Secret" not in caplog.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_isolated_reading_changes_no_voxel_and_reports_a_damaged_file(
    bundle: Path, volume: Path, tmp_path: Path
) -> None:
    plain = Predictor(bundle, output_dir=tmp_path / "plain", device="cpu").predict_case(volume)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(volume.read_bytes()[:200])
    predictor = Predictor(bundle, output_dir=tmp_path / "apart", device="cpu", isolated=True)
    first, second = predictor.predict([volume, broken])
    assert shared_process().pid is not None
    assert first.path is not None
    assert read_volume(first.path).image.equal(read_volume(plain).image)
    assert "broken.nii.gz: truncated gzip file" in str(second.error)


def test_a_bundle_with_another_reader_cannot_be_isolated(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="reading cannot be isolated"):
        monkeypatch.setattr("medunet.prediction.steps.MedunetReader", type("Other", (MedunetReader,), {}))
        Predictor(bundle, output_dir=tmp_path, device="cpu", isolated=True)
