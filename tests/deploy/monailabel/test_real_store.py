"""A real DICOMweb store behind a real MONAI Label server: series in, masks and DICOM SEG out, labels stored back."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medunet.datasets import make_phantom
from medunet.io import read_header, read_label, read_volume, write_volume
from medunet.prediction import Predictor

from .conftest import Clinic
from .real import Rejected
from .store import download, get

pytestmark = [pytest.mark.slow, pytest.mark.label, pytest.mark.filterwarnings("ignore")]


def infer(clinic: Clinic, uid: str, output: str, **params: object) -> bytes:
    return clinic.client.ask("POST", f"/infer/organs?image={uid}&output={output}", **params)


def expected_labels(clinic: Clinic, folder: Path) -> np.ndarray:
    """Predict the DICOM series itself."""
    predictor = Predictor(clinic.organs, output_dir=folder, device="cpu", result_format="nii.gz")
    return read_volume(predictor.predict_case(clinic.series)).image[0].numpy()


def test_a_series_gives_the_mask_of_the_predictor(clinic: Clinic, tmp_path: Path) -> None:
    assert clinic.client.next_sample("random")["id"]
    with pytest.raises(Rejected):
        infer(clinic, "1.2.3.4", "image")
    (tmp_path / "mask.nrrd").write_bytes(infer(clinic, clinic.series_uid, "image", result_extension=".nrrd"))
    mask = read_label(tmp_path / "mask.nrrd", reference=clinic.series).image[0].numpy()
    assert np.array_equal(mask, expected_labels(clinic, tmp_path))
    assert len(np.unique(mask)) > 1


def test_a_real_series_is_segmented(clinic: Clinic, tmp_path: Path) -> None:
    if not clinic.has_patient:
        pytest.skip("real images are absent")
    stored = [get(f"{clinic.store}/series/{one}")["MainDicomTags"] for one in get(f"{clinic.store}/series")]
    (uid,) = {tags["SeriesInstanceUID"] for tags in stored if tags["Modality"] == "CT"} - {clinic.series_uid}
    (tmp_path / "mask.nii.gz").write_bytes(infer(clinic, uid, "image", result_extension=".nii.gz"))
    assert read_volume(tmp_path / "mask.nii.gz").image.shape[1:] == (512, 512, 41)


def test_a_dicom_seg_has_the_bundles_names_and_voxels(clinic: Clinic, tmp_path: Path) -> None:
    labels = clinic.client.info()["models"]["organs"]["labels"]
    info = [{"name": name, "model_name": "organs"} for name in labels]
    (tmp_path / "seg.dcm").write_bytes(infer(clinic, clinic.series_uid, "dicom_seg", label_info=info))
    found = read_label(tmp_path / "seg.dcm", reference=clinic.series, labels={"background": 0, **labels}).image
    assert np.array_equal(found[0].numpy(), expected_labels(clinic, tmp_path))


def test_a_submitted_label_is_a_dicom_seg_in_the_store(clinic: Clinic, tmp_path: Path) -> None:
    phantom = make_phantom("ct", seed=(7, 90))
    voxels = phantom.label.copy()
    voxels[voxels == 2] = 0  # without the liver, which must not give its name to the spleen
    affine = read_header(clinic.series).geometry.affine
    corrected = write_volume(voxels.astype(np.uint8), tmp_path / "corrected.nii.gz", affine=affine)
    info = [{"name": name, "model_name": "organs"} for name in phantom.labels if name != "background"]
    clinic.client.save_label(clinic.series_uid, corrected, label_info=info)
    stored = [get(f"{clinic.store}/series/{one}") for one in get(f"{clinic.store}/series")]
    (segmentation,) = [one for one in stored if one["MainDicomTags"].get("Modality") == "SEG"]
    content = download(f"{clinic.store}/instances/{segmentation['Instances'][0]}/file")
    names = [str(item.SegmentLabel) for item in pydicom.dcmread(io.BytesIO(content)).SegmentSequence]
    assert names == ["lungs", "spleen", "kidneys", "spine"]
    (tmp_path / "stored.dcm").write_bytes(content)
    found = read_label(tmp_path / "stored.dcm", reference=clinic.series, labels=phantom.labels).image[0].numpy()
    assert np.array_equal(found, voxels)
