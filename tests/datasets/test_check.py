"""Findings on data sets: in headers, in voxels, and across cases."""

import dataclasses
import json

import numpy as np
import pytest

from medunet.datasets import (
    Case,
    SegmentationDataset,
    check_dataset,
    check_pair,
    open_dataset,
    raise_on_error,
    write_phantom_dataset,
)
from medunet.datasets.check.check import survey
from medunet.errors import DataError, GeometryError
from medunet.io import write_volume


@pytest.fixture
def dataset(tmp_path) -> SegmentationDataset:
    return open_dataset(write_phantom_dataset(tmp_path, kind="ct", cases=3, size=(17, 18, 19)))


def test_valid_data_set_has_no_findings(dataset):
    assert check_dataset(dataset) == check_dataset(dataset, level="voxels") == []
    raise_on_error([])


def test_label_of_another_shape_is_reported_from_the_header(dataset):
    label = dataset.cases[1].label
    write_volume(np.zeros((5, 6, 7), np.uint8), label)
    (finding,) = check_dataset(dataset)
    assert (finding.severity, finding.file) == ("error", str(label))
    with pytest.raises(DataError, match=r"ct_001.nii.gz: label and image have different shapes \(received \(5, 6, 7\)"):
        raise_on_error([finding])


def test_label_on_another_grid_is_a_geometry_error(tmp_path):
    data = np.zeros((5, 6, 7), np.uint8)
    image = write_volume(data, tmp_path / "a.nii.gz", affine=np.diag([1, 1, 2, 1]))
    label = write_volume(data, tmp_path / "b.nii.gz", affine=np.diag([-1, 1, 2, 1]))
    with pytest.raises(GeometryError, match=r"b.nii.gz: label and image have different grids \(received 8 mm apart"):
        raise_on_error(check_pair(Case("a", (image,), label)))


@pytest.mark.parametrize(
    ("value", "severity", "cause"),
    [
        (9, "error", "label has unknown values (received [9], expected [0, 1, 2, 3, 4, 5])"),
        (0, "warning", "label is empty"),
    ],
)
def test_values_are_checked_at_level_voxels_only(dataset, value, severity, cause):
    case = dataset.cases[2]
    write_volume(np.full((5, 6, 7), value, np.uint8), case.label)
    write_volume(np.arange(210, dtype=np.uint8).reshape(5, 6, 7), case.images[0])
    assert check_dataset(dataset) == []
    assert [(f.severity, f.cause) for f in check_dataset(dataset, level="voxels")] == [(severity, cause)]


def test_damaged_files_are_counted_and_the_first_is_raised(dataset):
    for case in dataset.cases[:2]:
        case.label.write_bytes(b"")
    more = r"ct_000.nii.gz: file has zero bytes \(and 1 more problems: .*_001\.nii\.gz: file has"
    with pytest.raises(DataError, match=more):
        raise_on_error(check_dataset(dataset))


def test_2d_image_among_volumes_is_reported(dataset):
    for path in (dataset.cases[1].images[0], dataset.cases[1].label):
        write_volume(np.zeros((5, 6), np.uint8), path)
    (finding,) = check_dataset(dataset)
    assert "number of axes is 2, not 3" in finding.cause


def test_picture_without_placement_matches_any_grid(tmp_path):
    image = write_volume(np.zeros((5, 6), np.uint8), tmp_path / "a.nii.gz", affine=np.diag([2, 2, 1, 1]))
    label = write_volume(np.zeros((5, 6), np.uint8), tmp_path / "b.png")
    assert check_pair(Case("a", (image,), label)) == []


@pytest.mark.data
def test_real_data_sets_have_no_errors(test_data):
    for name in ("Task04_Hippocampus", "ISBI2012_EM", "STS_GTV_CT"):
        assert check_dataset(open_dataset(test_data / name)) == []


@pytest.mark.parametrize(
    ("label", "severity", "cause", "remedy"),
    [
        (np.float32([0, 1] * 3 + [1]), "warning", "label is stored as float32, though its values are whole", "uint8"),
        (np.float32([0, 0.5] * 3 + [1]), "error", "label has fractional values (received 0.5)", "resample by nearest"),
        (np.int16([0, -1] * 3 + [1]), "error", "label has negative values (received -1.0)", "relabel"),
    ],
)
def test_labels_that_are_not_whole_numbers_are_reported(tmp_path, label, severity, cause, remedy):
    image = write_volume(np.arange(210, dtype=np.int16).reshape(5, 6, 7), tmp_path / "a.nii.gz")
    path = write_volume(np.broadcast_to(label, (5, 6, 7)).copy(), tmp_path / "b.nii.gz")
    (finding,) = check_pair(Case("a", (image,), path), {"background": 0, "liver": 1}, level="voxels")
    assert (finding.severity, finding.cause) == (severity, cause)
    assert remedy in finding.remedy


def test_an_error_in_a_test_case_is_a_warning(dataset):
    lonely = dataclasses.replace(dataset, cases=dataset.cases[:2], test=dataset.cases[2:])
    lonely.test[0].images[0].write_bytes(b"")
    assert [(f.severity, f.case) for f in survey(lonely)[0]] == [("warning", "ct_002")]
    assert check_dataset(lonely, level="voxels") == []


def test_many_values_are_classes_if_they_are_named(tmp_path):
    """TotalSegmentator has 117 classes; without names so many values would be taken for instances."""
    label = (np.arange(5 * 6 * 7) % 118).astype(np.uint8).reshape(5, 6, 7)
    image = write_volume(label.astype(np.float32), tmp_path / "a.nii.gz")
    case = Case("a", (image,), write_volume(label, tmp_path / "b.nii.gz"))
    names = {"background": 0, **{f"organ {value}": value for value in range(1, 118)}}
    assert check_pair(case, names, level="voxels") == []
    (finding,) = check_pair(case, level="voxels")
    assert "too many values" in finding.cause


@pytest.mark.parametrize("shape", [(9, 8, 1), (1, 9, 8)])
def test_a_slice_among_volumes_is_reported_before_training(tmp_path, shape):
    for name, size in (("a", shape), ("b", (9, 8, 7))):
        label = np.arange(np.prod(size)).reshape(size) % 2
        write_volume(np.ones(size, np.float32), tmp_path / "images" / f"{name}.nii.gz")
        write_volume(label.astype(np.uint8), tmp_path / "labels" / f"{name}.nii.gz")
    (finding,) = check_dataset(open_dataset(tmp_path))
    assert (finding.severity, finding.case) == ("error", "a")
    with pytest.raises(DataError, match=r"single slice.*slices only, \(x, y\) or \(x, y, 1\)"):
        raise_on_error([finding])


def test_more_classes_than_a_label_map_can_hold_are_rejected(dataset):
    labels = {f"part {value}": value for value in range(256)}
    manifest = json.loads((dataset.root / "dataset.json").read_text())
    (dataset.root / "dataset.json").write_text(json.dumps({**manifest, "labels": labels}))
    with pytest.raises(DataError, match="too many classes"):
        open_dataset(dataset.root)
