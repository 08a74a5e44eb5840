import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError, DataError
from medunet.io import SavePredictiond, label_names, read_label, read_volume, write_volume

LABELS = {"background": 0, "liver": 1, "kidney": 5}


def loaded(path, label: np.ndarray) -> dict:
    """An item as it comes out of a network: the image as read, a prediction on its grid."""
    image = read_volume(path).image
    return {"image": image, "pred": MetaTensor(torch.as_tensor(label[None], dtype=torch.float32), affine=image.affine)}


def nifti(folder, label: np.ndarray):
    return write_volume(label, folder / "case.nii.gz", affine=np.diag([-0.8, -0.9, 2.5, 1]), dtype="int16")


@pytest.mark.parametrize(("format", "name"), [("nii.gz", "case.nii.gz"), ("seg.nrrd", "case.seg.nrrd")])
def test_chosen_format_is_written_with_names(tmp_path, labelled, format, name):
    item = loaded(nifti(tmp_path, labelled()), labelled())
    path = SavePredictiond(output_dir=tmp_path / "out", format=format, labels=LABELS)(item)["pred_path"]
    assert path == str(tmp_path / "out" / name)
    volume = read_label(path, reference=tmp_path / "case.nii.gz", labels=LABELS)
    assert np.array_equal(volume.image[0].numpy(), labelled())
    assert set(label_names(path)) == set(LABELS)


def test_patient_is_in_no_name_log_line_or_warning(tmp_path, make_series, *, labelled, caplog, recwarn):
    item = loaded(make_series(tmp_path / "ct", PatientName="SECRET-4711"), labelled())  # highdicom wants a caret
    formats = ["nii.gz", "seg.nrrd", "rtstruct"] + ["dicom-seg"] * (find_spec("highdicom") is not None)
    with caplog.at_level("DEBUG"):
        for format in formats:
            SavePredictiond(output_dir=tmp_path / format, format=format, labels=LABELS)(item)
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")]
    text = caplog.text + " ".join([*names, *(str(warning.message) for warning in recwarn)])
    assert "ct.dcm" in text
    for secret in ("SECRET", "4711", "Hidden"):
        assert secret not in text
    for name in ("ct.nii.gz", "ct.seg.nrrd"):
        assert b"4711" not in (tmp_path / name.partition(".")[2] / name).read_bytes()


def test_series_without_highdicom_becomes_nifti_with_a_warning(tmp_path, make_series, labelled, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    item = loaded(make_series(tmp_path / "ct"), labelled())
    item = SavePredictiond(output_dir=tmp_path / "out", labels=LABELS)(item)
    assert item["pred_path"].endswith("ct.nii.gz")
    assert "medunet[dicom]" in caplog.text


@pytest.mark.parametrize("format", ["dicom-seg", "rtstruct"])
def test_dicom_results_of_other_inputs_are_rejected_before_the_network_runs(tmp_path, labelled, format):
    item = loaded(nifti(tmp_path, labelled()), labelled())
    with pytest.raises(DataError, match=f"case.nii.gz: {format} needs a DICOM series as input"):
        SavePredictiond(output_dir=tmp_path / "out", format=format).check({"image": item["image"]})


def test_existing_results_are_kept_and_rejected_before_the_network_runs(tmp_path, labelled):
    item = loaded(nifti(tmp_path, labelled()), labelled())
    save = SavePredictiond(output_dir=tmp_path / "out", prob_key="prob")
    save.check(item)
    path = tmp_path / "out" / "case.nii.gz"
    save(item)
    before = path.read_bytes()
    for write in (save, save.check):
        with pytest.raises(DataError, match=r"out/case.nii.gz: result exists already; remedy: .*--force"):
            write(item)
    assert path.read_bytes() == before
    item["pred"] = torch.zeros_like(item["pred"])
    SavePredictiond(output_dir=tmp_path / "out", overwrite=True)(item)
    assert not read_volume(path).image.any()
    path.rename(tmp_path / "out" / "case_prob.nii.gz")
    with pytest.raises(DataError, match=r"case_prob.nii.gz: result exists already"):
        save.check(item)


def test_unknown_formats_and_colours_of_unknown_labels_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match="unknown format"):
        SavePredictiond(output_dir=tmp_path, format="dicom")
    with pytest.raises(ConfigError, match="label_colors of unknown labels"):
        SavePredictiond(output_dir=tmp_path, labels=LABELS, label_colors={"lung": [1, 2, 3]})


def test_slice_that_was_removed_since_it_was_read_is_rejected(tmp_path, make_series, labelled):
    item = loaded(make_series(tmp_path / "ct"), labelled())
    next((tmp_path / "ct").glob("*_004.dcm")).unlink()
    with pytest.raises(DataError, match=r"_004.dcm: cannot be read as DICOM: FileNotFoundError"):
        SavePredictiond(output_dir=tmp_path, format="rtstruct").check(item)
