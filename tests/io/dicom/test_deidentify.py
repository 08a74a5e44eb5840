"""De-identified results identify nobody without the key, and still belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medunet.errors import DataError, GeometryError
from medunet.io import Pseudonyms, read_header
from medunet.io.dicom.deidentify import deidentify
from medunet.io.dicom.references import SourcePlane, read_planes, save_dataset
from medunet.io.dicom.rtstruct import make_rtstruct
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments

KEY = b"a secret of sixteen bytes or more"
SEGMENTS = as_segments({"background": 0, "kidney": 1})


@pytest.fixture
def series(tmp_path: Path, make_series: Callable[..., Path]) -> Path:
    return make_series(tmp_path / "ct")


def results(series: Path) -> Iterator[Dataset]:
    pytest.importorskip("highdicom")
    geometry = read_header(series).geometry
    planes: tuple[SourcePlane, ...] = read_planes(read_header(series).frames, geometry)
    voxels = np.zeros(geometry.shape, np.uint8)
    voxels[3:9, 4:9, 1:3] = 1
    algorithm = {"name": "one", "version": "1"}
    yield make_dicom_seg(voxels, SEGMENTS, planes, algorithm=algorithm)
    yield make_rtstruct(voxels, SEGMENTS, planes, algorithm=algorithm)


def uids(dataset: Dataset) -> set[str]:
    return {str(e.value) for e in dataset.iterall() if e.VR == "UI" and not str(e.value).startswith("1.2.840.10008.")}


def test_results_contain_nothing_of_the_source(series: Path, tmp_path: Path) -> None:
    sources = [pydicom.dcmread(path) for path in series.iterdir()]
    known = {str(e.value) for s in sources for e in s if e.VR in {"PN", "UI", "DA", "TM"} and e.value}
    known |= {"ID-4711", "A1"}
    known = {word for value in known for word in value.split("^") if not value.startswith("1.2.840.10008.")}
    for index, made in enumerate(results(series)):
        before = uids(made)
        deidentify(made, Pseudonyms())
        save_dataset(made, tmp_path / f"{index}.dcm")
        content = (tmp_path / f"{index}.dcm").read_bytes()
        found = pydicom.dcmread(tmp_path / f"{index}.dcm")
        assert not [word for word in known if word.encode() in content or word.encode("latin-1") in content]
        assert not before & uids(found)
        assert found.PatientIdentityRemoved == "YES"
        assert found.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert len(found.DeidentificationMethod) <= 64
        assert found.PatientName == found.PatientID
        assert str(found.PatientID).startswith("patient_")
        assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID
        assert {found.PatientBirthDate, found.StudyDate, found.StudyID, found.AccessionNumber} == {""}


def test_one_key_maps_the_same_things_to_the_same_names(series: Path) -> None:
    first, second, other = (list(results(series)) for _ in range(3))
    for made, names in ((first, Pseudonyms(KEY)), (second, Pseudonyms(KEY)), (other, Pseudonyms())):
        for dataset in made:
            deidentify(dataset, names)
    for a, b, c in zip(first, second, other, strict=True):
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
            assert a[name].value == b[name].value != c[name].value
        assert a.SOPInstanceUID != b.SOPInstanceUID  # two objects
        assert all(pydicom.uid.UID(uid).is_valid for uid in uids(a))
    seg, contours = first
    assert seg.StudyInstanceUID == contours.StudyInstanceUID
    study = contours.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert study.ReferencedSOPInstanceUID == contours.StudyInstanceUID
    images = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    series_of = study.RTReferencedSeriesSequence[0]
    assert images <= {item.ReferencedSOPInstanceUID for item in series_of.ContourImageSequence}
    assert series_of.SeriesInstanceUID == seg.ReferencedSeriesSequence[0].SeriesInstanceUID


def test_errors_use_the_new_name_of_the_case() -> None:
    names = Pseudonyms()
    path = Path("/clinic/Smith_John/Smith_John.nii.gz")
    error = GeometryError("Smith_John.nii.gz is bent", file=path, received="Smith", expected="x", remedy=f"fix {path}")
    hidden = names.hide(error, path)
    assert str(hidden) == "case_0001: case_0001 is bent; remedy: fix case_0001"
    assert isinstance(hidden, GeometryError)


def test_short_and_missing_keys_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(DataError, match="must have 16 bytes"):
        Pseudonyms.from_file(tmp_path / "key")
    with pytest.raises(DataError, match="cannot be opened"):
        Pseudonyms.from_file(tmp_path / "none")
