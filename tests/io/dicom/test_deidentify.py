"""De-identified results identify no patient without the key, and stay linked to each other."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medunet.errors import DataError, GeometryError
from medunet.io import Pseudonyms, read_header
from medunet.io.dicom.deidentify import deidentify
from medunet.io.dicom.references import read_planes, save_dataset
from medunet.io.dicom.rtstruct import make_rtstruct
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments

KEY = b"a secret of sixteen bytes or more"


def results(series, names):
    """Return a de-identified SEG and RTSTRUCT of a series, and the UIDs that they had before."""
    pytest.importorskip("highdicom")
    record = read_header(series)
    voxels = np.zeros(record.geometry.shape, np.uint8)
    voxels[3:9, 4:9, 1:3] = 1
    segments, planes = as_segments({"background": 0, "kidney": 1}), read_planes(record.frames, record.geometry)
    options = {"algorithm": {"name": "one", "version": "1"}}
    datasets = [make(voxels, segments, planes, **options) for make in (make_dicom_seg, make_rtstruct)]
    before = set.union(*map(uids, datasets))
    for dataset in datasets:
        deidentify(dataset, names)
    return datasets, before


def uids(dataset):
    return {str(e.value) for e in dataset.iterall() if e.VR == "UI" and not str(e.value).startswith("1.2.840.10008.")}


def test_results_contain_no_identifier_of_the_source(make_series, tmp_path):
    series = make_series(tmp_path / "ct")
    sources = [pydicom.dcmread(path) for path in series.iterdir()]
    known = {str(e.value) for s in sources for e in s if e.VR in {"PN", "UI", "DA", "TM"} and e.value}
    known |= {"ID-4711", "A1"}
    known = {word for value in known for word in value.split("^") if not value.startswith("1.2.840.10008.")}
    datasets, before = results(series, Pseudonyms())
    for index, dataset in enumerate(datasets):
        save_dataset(dataset, tmp_path / f"{index}.dcm")
        content = (tmp_path / f"{index}.dcm").read_bytes()
        result = pydicom.dcmread(tmp_path / f"{index}.dcm")
        assert not [word for word in known if word.encode() in content or word.encode("latin-1") in content]
        assert not before & uids(result)
        assert result.PatientIdentityRemoved == "YES"
        assert result.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert len(result.DeidentificationMethod) <= 64
        assert result.PatientName == result.PatientID
        assert str(result.PatientID).startswith("patient_")
        assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
        assert {result.PatientBirthDate, result.StudyDate, result.StudyID, result.AccessionNumber} == {""}


def test_equal_keys_give_equal_pseudonyms(make_series, tmp_path):
    series = make_series(tmp_path / "ct")
    first, second, other = (results(series, names)[0] for names in (Pseudonyms(KEY), Pseudonyms(KEY), Pseudonyms()))
    for a, b, c in zip(first, second, other, strict=True):
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
            assert a[name].value == b[name].value != c[name].value
        assert a.SOPInstanceUID != b.SOPInstanceUID  # two objects
        assert all(pydicom.uid.UID(uid).is_valid for uid in uids(a))
    seg, contours = first
    study = contours.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert seg.StudyInstanceUID == contours.StudyInstanceUID == study.ReferencedSOPInstanceUID
    [in_seg], [in_contours] = seg.ReferencedSeriesSequence, study.RTReferencedSeriesSequence
    assert in_seg.SeriesInstanceUID == in_contours.SeriesInstanceUID
    images = {item.ReferencedSOPInstanceUID for item in in_seg.ReferencedInstanceSequence}
    assert images <= {item.ReferencedSOPInstanceUID for item in in_contours.ContourImageSequence}


def test_errors_use_the_new_name_of_the_case():
    path = Path("/clinic/Smith_John/Smith_John.nii.gz")
    error = GeometryError("Smith_John.nii.gz is bent", file=path, received="Smith", expected="x", remedy=f"fix {path}")
    hidden = Pseudonyms().hide(error, path)
    assert str(hidden) == "case_0001: case_0001 is bent; remedy: fix case_0001"
    assert isinstance(hidden, GeometryError)


def test_short_and_missing_keys_are_rejected(tmp_path):
    (tmp_path / "key").write_bytes(b"short")
    for name, cause in (("key", "must have 16 bytes"), ("none", "does not exist")):
        with pytest.raises(DataError, match=cause):
            Pseudonyms.from_file(tmp_path / name)
