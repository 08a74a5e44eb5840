"""The fingerprint of data sets whose numbers are computed by hand."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.datasets import Case, examine, open_dataset
from medunet.datasets.layouts.orientation import orientation_words
from medunet.errors import DataError
from medunet.geometry import Geometry
from medunet.io import ReadRecord, write_volume
from medunet.planning import fingerprint
from medunet.planning.measure import CaseMeasure, measure_case, thickness

from .conftest import DataMaker, declare, relabel

MODULE = sys.modules["medunet.planning.fingerprint"]  # the function of the same name hides it
GRID = np.diag([1.0, 2.0, 3.0, 1.0])


def write_case(root: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray = GRID) -> None:
    write_volume(image.astype(np.float32), root / "images" / f"{name}.nii.gz", affine=affine, overwrite=True)
    write_volume(label.astype(np.uint8), root / "labels" / f"{name}.nii.gz", affine=affine, overwrite=True)


@pytest.fixture
def two_cases(tmp_path: Path) -> Path:
    """Two volumes of 10 x 8 x 6; their foreground, 2 x 4 x 6 voxels, is 10 in one and 30 in the other."""
    label = np.zeros((10, 8, 6))
    label[4:6, 2:6, :] = 1
    for name, value in (("a", 10.0), ("b", 30.0)):
        image = np.zeros((10, 8, 6))
        image[1:9, 1:7, :] = 5.0
        image[label == 1] = value
        write_case(tmp_path / "data", name, image, label)
    return tmp_path / "data"


def test_measurements_match_hand_computed_values(two_cases: Path) -> None:
    totals, steps = [], []
    result = fingerprint(open_dataset(two_cases), jobs=1, started=totals.append, done=lambda: steps.append(1))
    assert (totals, len(steps)) == ([2], 2)
    assert result.cases == ("a", "b")
    assert result.shapes == ((10, 8, 6),) * 2
    assert result.spacings_mm == ((1.0, 2.0, 3.0),) * 2
    assert result.crop_shapes == ((8, 6, 6),) * 2
    assert result.body_shapes == result.shapes  # nothing is as low as air
    assert result.crop_share == pytest.approx(8 * 6 * 6 / (10 * 8 * 6))
    channel = result.channels[0]
    # each case is constant: the deviation is that between the cases
    assert (channel.mean, channel.std, channel.low, channel.high) == (20.0, 10.0, 10.0, 30.0)
    organ = result.classes[0]
    assert (organ.name, organ.value, organ.cases, organ.median_voxels) == ("label_1", 1, 2, 48.0)
    assert organ.share == result.foreground_share == pytest.approx(48 / 480)
    assert organ.median_ml == pytest.approx(48 * 6 / 1000)
    # 2 x 8 x 18 mm: two volumes over the surface
    assert organ.thickness_mm == pytest.approx(2 * 288 / (2 * (2 * 8 + 2 * 18 + 8 * 18)), rel=1e-4)


def test_axes_are_in_ras_order(tmp_path: Path) -> None:
    label = np.zeros((4, 12, 8))
    label[1:3, 2:5, 2:5] = 1
    for name in "ab":  # stored S, R, A
        affine = np.array([[0, 0.5, 0, 0], [0, 0, 2.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
        write_case(tmp_path, name, np.ones(label.shape), label, affine)
    result = fingerprint(open_dataset(tmp_path))
    assert (result.shapes[0], result.spacings_mm[0]) == ((12, 8, 4), (0.5, 2.0, 5.0))


def test_only_changed_files_and_damaged_measurements_are_measured_again(
    two_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = MODULE._measure

    def watched(case: Case, *rest: Any) -> CaseMeasure | str:
        measured.append(case.name)
        return measure(case, *rest)

    monkeypatch.setattr(MODULE, "_measure", watched)
    cache = tmp_path / "cache"
    first = fingerprint(open_dataset(two_cases), cache=cache)
    measured.clear()
    assert fingerprint(open_dataset(two_cases), cache=cache) == first
    assert measured == []
    file = next(cache.glob("*/*.json"))
    file.write_text(file.read_text()[:40])  # as after a crash
    assert fingerprint(open_dataset(two_cases), cache=cache) == first
    assert len(measured) == 1
    image = two_cases / "images" / "b.nii.gz"
    write_volume(np.full((10, 8, 6), 50, np.float32), image, affine=GRID, overwrite=True)
    os.utime(image, (1, 1))
    assert fingerprint(open_dataset(two_cases), cache=cache).channels[0].mean == 30.0
    assert measured[1:] == ["b"]
    assert len(list(cache.glob("*/*.json"))) == 2  # the measure of the old file is removed


def test_broken_cases_are_skipped_and_an_error_is_raised_if_none_remains(two_cases: Path) -> None:
    dataset = open_dataset(two_cases)
    (two_cases / "images" / "a.nii.gz").write_bytes(b"no gzip")
    result = fingerprint(dataset)
    assert result.cases == ("b",)
    assert set(result.broken) == {"a"}
    (two_cases / "images" / "b.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="no case can be measured"):
        fingerprint(dataset)


@pytest.mark.parametrize(
    ("channel", "low", "high", "kind"),
    [
        ("CT", 0, 100, "CT"),
        ("image", -1000, 400, "CT"),
        ("image", 0, 400, "grey"),
        ("image", -5, 5, "grey"),
        ("T1", -1000, 400, "MR"),
    ],
)
def test_the_kind_of_intensities_is_guessed(make_data: DataMaker, channel: str, low: int, high: int, kind: str) -> None:
    result = fingerprint(open_dataset(make_data(channels=[channel], low=low, high=high)))
    assert result.channels[0].kind == kind


def test_ignored_voxels_are_not_foreground(make_data: DataMaker) -> None:
    result = fingerprint(open_dataset(make_data(labels={"background": 0, "organ": 1, "ignore": 2})))
    assert result.ignore == 2
    assert [entry.name for entry in result.classes] == ["organ"]
    # 4 x 4 x 2 voxels of either, in 16**3
    assert result.foreground_share == pytest.approx(32 / (16**3 - 32), rel=1e-4)


def test_cases_without_foreground_do_not_change_its_intensities(two_cases: Path) -> None:
    for name in ("air_1", "air_2", "air_3"):  # more of them than of the others
        write_case(two_cases, name, np.full((10, 8, 6), -1000), np.zeros((10, 8, 6)))
    result = fingerprint(open_dataset(two_cases))
    assert len(result.cases) == 5
    assert (result.channels[0].mean, result.channels[0].low) == (20.0, 10.0)


def test_the_background_may_have_another_value_than_0(make_data: DataMaker) -> None:
    label = np.full((16, 16, 16), 1)
    label[:3] = 0  # not annotated, as beside scribbles
    label[12:14] = 2
    root = relabel(make_data(labels={"ignore": 0, "background": 1, "cell": 2}), label)
    result = fingerprint(open_dataset(root))
    assert result.labels == {"background": 1, "cell": 2}
    assert [entry.name for entry in result.classes] == ["cell"]
    assert result.foreground_share == pytest.approx(2 / 13, rel=1e-4)


def test_regions_have_names_and_their_values_are_measured(make_data: DataMaker) -> None:
    root = make_data(labels={"background": 0, "rim": 1, "core": 2})
    declare(root, labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    result = fingerprint(open_dataset(root))
    assert result.regions == {"whole": [1, 2], "core": [2]}
    assert result.class_names == ("whole", "core")
    assert [entry.name for entry in result.classes] == ["label_1", "core"]


def test_thickness_is_measured_within_annotated_slices() -> None:
    def thickness_of(label: np.ndarray) -> float:
        record = ReadRecord(Path("a.nii.gz"), "nifti", Geometry(np.eye(4), label.shape))
        case = measure_case("a", np.ones((1, *label.shape), np.float32), label[None], record, ignore=255)
        return case.class_thickness_mm[1]

    label = np.zeros((21, 20, 20), np.float32)
    label[:, 5:13, 6:14] = 1  # a rod along axis 0
    assert thickness_of(label) == pytest.approx(4, rel=0.2)
    label[np.arange(21) % 5 != 0] = 255
    assert thickness_of(label) == pytest.approx(4, rel=0.2)
    label[label == 0] = 255
    assert thickness_of(label) == 0.0  # no surface is annotated


def test_labels_of_background_only_cannot_be_planned(make_data: DataMaker) -> None:
    root = relabel(make_data(), np.zeros((16, 16, 16)))
    with pytest.raises(DataError, match="all labels have background only"):
        fingerprint(open_dataset(root))
    (error,) = (finding.cause for finding in examine(root).findings if finding.severity == "error")
    assert error == "all labels have background only: there is nothing to learn"


def test_check_reports_the_share_that_is_not_annotated(make_data: DataMaker) -> None:
    label = np.full((16, 16, 16), 2)
    label[0] = 0
    label[0, :8] = 1
    root = relabel(make_data(labels={"background": 0, "organ": 1, "ignore": 2}), label)
    summary = examine(root).summary()
    assert summary["ignored_fraction"] == pytest.approx(15 / 16)
    assert [entry["fraction"] for entry in summary["classes"].values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["kidney_L", "kidney_R"], {"kidney_L", "kidney_R"}),
        (["lungLeft", "upper lobe", "heart"], {"lungLeft", "upper lobe"}),
        (["vertebra_L1", "vertebra_T12", "spleen", "aorta", "ground-glass", "rectum"], set()),
    ],
)
def test_names_with_words_for_directions_are_recognised(names: list[str], expected: set[str]) -> None:
    assert set(orientation_words(dict.fromkeys(names, 1))) == expected


def test_large_label_values_are_kept() -> None:
    label = np.zeros((20, 20, 20), np.float32)
    label[4:8] = 70_000
    label[12:14] = 70_001  # not annotated
    record = ReadRecord(Path("a.nii.gz"), "nifti", Geometry(np.eye(4), label.shape))
    case = measure_case("a", label[None], label[None], record, ignore=70_001)
    assert case.class_voxels == {0: 14 * 400, 70_000: 4 * 400}
    expected = thickness(label == 70_000, (1.0, 1.0, 1.0), known=label != 70_001)
    assert case.class_thickness_mm == pytest.approx({70_000: expected}, rel=1e-4)
    assert case.channels[0].mean == pytest.approx(70_000)
