"""DICOM data sets: a series and the SEG or RTSTRUCT that refers to it, case by case."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from medunet.datasets import check_dataset, examine, open_dataset
from medunet.datasets.layouts.dicom_folders import dicom_cases
from medunet.errors import DataError

SECRET = "Doe^Jane"


def item(**tags) -> Dataset:
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def save(path: Path, sop_class: str, **tags) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = item(SOPClassUID=sop_class, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, PatientName=SECRET, **tags)
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    third = int(pydicom.__version__.split(".", maxsplit=1)[0]) >= 3
    dataset.save_as(path, **({"enforce_file_format": True} if third else {"write_like_original": False}))
    return path


def series(folder: Path, uid: str, slices: int = 5) -> str:
    """A CT of 9 x 11 pixels of 1 mm, 2 mm apart."""
    rng = np.random.default_rng(len(uid))
    grid = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1], "Rows": 9, "Columns": 11}
    bits = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "SamplesPerPixel": 1}
    values = {"PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 1, "RescaleIntercept": -1000}
    uids = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4"}
    for k in range(slices):
        pixels = rng.integers(0, 100, (9, 11), dtype=np.uint16).tobytes()
        place = {"ImagePositionPatient": [0, 0, 2 * k], "PixelData": pixels}
        save(folder / f"{k}.dcm", CTImageStorage, Modality="CT", **uids, **grid, **bits, **values, **place)
    return uid


def contours(path: Path, referenced: str, *names: str) -> Path:
    """Squares of 3 x 3 pixels in slice 2, one beside the other."""
    study = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=referenced)])
    frame = item(RTReferencedStudySequence=[study], FrameOfReferenceUID="1.2.4")
    regions, outlines = [], []
    for number, name in enumerate(names, start=1):
        regions.append(item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID="1.2.4"))
        left = 4 * number - 3.5
        corners = [(left, 0.5), (left + 3, 0.5), (left + 3, 3.5), (left, 3.5)]
        points = [value for x, y in corners for value in (x, y, 4.0)]
        contour = item(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=4, ContourData=points)
        outlines.append(item(ContourSequence=[contour], ReferencedROINumber=number))
    sequences = {"StructureSetROISequence": regions, "ROIContourSequence": outlines}
    uids = {"SeriesInstanceUID": generate_uid(), "ReferencedFrameOfReferenceSequence": [frame]}
    return save(path, RTStructureSetStorage, Modality="RTSTRUCT", **uids, **sequences)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two cases: the label in a separate folder, and among the slices."""
    contours(tmp_path / "b" / "labels" / "rs.dcm", series(tmp_path / "b" / "study" / "ct", "1.2.10"), "Liver")
    contours(tmp_path / "a" / "rs.dcm", series(tmp_path / "a", "1.2.110"), "Spleen", "liver ")
    return tmp_path


def test_cases_are_named_after_their_folders(root):
    first, second = dicom_cases(root)
    assert (first.name, first.images, first.label) == ("a", (root / "a",), root / "a" / "rs.dcm")
    assert (second.name, second.images) == ("b", (root / "b" / "study" / "ct",))
    assert SECRET not in repr((first, second))


def test_structures_are_numbered_by_name_if_files_disagree(root):
    dataset = open_dataset(root)
    assert dataset.labels == {"background": 0, "liver": 1, "Spleen": 2}
    assert (dataset.spatial_dims, dataset.channels, dataset.file_ending) == (3, ("image",), ".dcm")


def test_data_set_is_read_without_conversion(root):
    result = examine(root)
    assert not result.fails
    voxels = {case.name: case.class_voxels for case in result.statistics}
    assert voxels == {"a": {0: 495 - 18, 1: 9, 2: 9}, "b": {0: 495 - 9, 1: 9}}
    assert SECRET not in json.dumps(result.as_dict())


def test_headers_are_checked_before_training(root):
    assert [f for f in check_dataset(open_dataset(root)) if f.severity == "error"] == []
    (root / "b" / "study" / "ct" / "3.dcm").unlink()
    (finding,) = (f for f in check_dataset(open_dataset(root)) if f.severity == "error")
    assert finding.case == "b"
    assert "a slice is missing" in finding.cause


def test_dataset_json_chooses_the_structures(root):
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 7}}))
    assert open_dataset(root).labels == {"background": 0, "liver": 7}
    assert {value for case in examine(root).statistics for value in case.class_voxels} == {0, 7}


def test_label_without_a_valid_reference_belongs_to_the_only_series(root):
    series(root / "b" / "study" / "scout", "1.2.55", slices=2)
    assert dicom_cases(root)[1].images == (root / "b" / "study" / "ct",)  # not the series without label
    for path in (root / "b" / "study" / "scout").iterdir():
        path.unlink()
    contours(root / "b" / "labels" / "rs.dcm", "9.9", "Liver")
    assert dicom_cases(root)[1].images == (root / "b" / "study" / "ct",)
    series(root / "b" / "study" / "other", "1.2.5")
    with pytest.raises(DataError, match=r"rs.dcm: label must refer to a series of its case \(received 2 series in b\)"):
        dicom_cases(root)


def test_case_without_label_or_image_is_rejected(root):
    series(root / "c", "1.2.6")
    with pytest.raises(DataError, match=r"c: case has no label.*SEG or RTSTRUCT"):
        open_dataset(root)
    (root / "c" / "rs.dcm").symlink_to(root / "a" / "rs.dcm")
    for path in (root / "c").glob("[0-9].dcm"):
        path.unlink()
    with pytest.raises(DataError, match="c: case has no image"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        (None, r"several labels of one series \(received labels/rs.dcm, second.dcm\)"),
        ("1.2.7", "several labelled series"),
    ],
)
def test_two_labels_are_rejected(root, other, cause):
    contours(root / "b" / "second.dcm", series(root / "b" / "mr", other) if other else "1.2.10", "Liver")
    with pytest.raises(DataError, match=f"b: case has {cause}"):
        open_dataset(root)


def test_image_and_label_folders_may_contain_dicom(root, tmp_path):
    target = tmp_path / "pairs"
    for name, uid in (("x", "1.2.20"), ("y", "1.2.21")):
        contours(target / "labels" / f"{name}.dcm", series(target / "images" / name, uid), "Liver")
    dataset = open_dataset(target)
    assert [case.label.name for case in dataset.cases] == ["x.dcm", "y.dcm"]
    assert dataset.labels == {"background": 0, "Liver": 1}
    assert not examine(target).fails
