"""The fingerprint of data sets whose numbers are computed by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.cli.check import _print_tables
from medunet.datasets import Case, examine, open_dataset
from medunet.datasets.layouts.orientation import orientation_words
from medunet.errors import DataError
from medunet.geometry import Geometry
from medunet.io import ReadRecord, read_volume, write_volume
from medunet.planning import fingerprint
from medunet.planning.measure import MeasureCache, measure_case, thickness

from .conftest import DataMaker

MODULE = sys.modules["medunet.planning.fingerprint"]
"""By its name, which the function of the same name hides."""


def write_case(root: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    write_volume(image.astype(np.float32), root / "images" / f"{name}.nii.gz", affine=affine)
    write_volume(label.astype(np.uint8), root / "labels" / f"{name}.nii.gz", affine=affine)


@pytest.fixture
def two_cases(tmp_path: Path) -> Path:
    """Two volumes of 10 x 8 x 6; their foreground, 2 x 4 x 6 voxels, is 10 in one and 30 in the other."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    label = np.zeros((10, 8, 6))
    label[4:6, 2:6, :] = 1
    for name, value in (("a", 10.0), ("b", 30.0)):
        image = np.zeros((10, 8, 6))
        image[1:9, 1:7, :] = 5.0
        image[label == 1] = value
        write_case(tmp_path / "data", name, image, label, affine)
    return tmp_path / "data"


def test_figures_are_those_computed_by_hand(two_cases: Path) -> None:
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
    # stored S, R, A
    affine = np.array([[0, 0.5, 0, 0], [0, 0, 2.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    image, label = np.ones((4, 12, 8)), np.zeros((4, 12, 8))
    label[1:3, 2:5, 2:5] = 1
    for name in "ab":
        write_case(tmp_path, name, image, label, affine)
    result = fingerprint(open_dataset(tmp_path))
    assert result.shapes[0] == (12, 8, 4)
    assert result.spacings_mm[0] == (0.5, 2.0, 5.0)


def test_a_second_run_reads_no_voxel(two_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(open_dataset(two_cases), cache=tmp_path / "cache")
    dataset = open_dataset(two_cases)
    monkeypatch.setattr(MODULE, "check_pair", lambda *_, **__: pytest.fail("a case was read"))
    assert fingerprint(dataset, cache=tmp_path / "cache") == first


def test_a_changed_file_is_measured_again(two_cases: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fingerprint(open_dataset(two_cases), cache=cache)
    image = np.full((10, 8, 6), 50.0)
    write_volume(image.astype(np.float32), two_cases / "images" / "b.nii.gz", affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    os.utime(two_cases / "images" / "b.nii.gz", (1, 1))
    assert fingerprint(open_dataset(two_cases), cache=cache).channels[0].mean == 30.0
    assert len(list(cache.glob("*/*.json"))) == 2  # the measure of the old file is gone


def test_voxels_beside_their_header_count_as_the_case(two_cases: Path, tmp_path: Path) -> None:
    dataset = open_dataset(two_cases)
    measure = MODULE._measure(dataset.cases[0], dataset)
    for name in ("c.mhd", "c.raw"):
        (tmp_path / name).write_bytes(b"1")
    case = Case("c", (tmp_path / "c.mhd",))
    MeasureCache(tmp_path / "cache", dataset).put(case, measure)
    assert MeasureCache(tmp_path / "cache", dataset).get(case) == measure
    (tmp_path / "c.raw").write_bytes(b"12")
    assert MeasureCache(tmp_path / "cache", dataset).get(case) is None


def test_an_interrupted_measurement_resumes(two_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    whole = fingerprint(open_dataset(two_cases), cache=cache)
    file = next(cache.glob("*/*.json"))
    file.write_text(file.read_text()[:40])  # as after a crash
    measured: list[str] = []
    measure = MODULE._measure

    def watched(case: Case, *rest: Any) -> Any:
        measured.append(case.name)
        return measure(case, *rest)

    monkeypatch.setattr(MODULE, "_measure", watched)
    assert fingerprint(open_dataset(two_cases), cache=cache) == whole
    assert len(measured) == 1


def test_a_broken_case_is_named_and_left_out(two_cases: Path) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    label = np.zeros((10, 8, 6))
    label[4:6, 2:6, :] = 1
    write_case(two_cases, "c", np.ones((10, 8, 6)), label, affine)
    dataset = open_dataset(two_cases)
    (two_cases / "images" / "c.nii.gz").write_bytes(b"no gzip")
    result = fingerprint(dataset)
    assert result.cases == ("a", "b")
    assert set(result.broken) == {"c"}


def test_no_usable_case_is_an_error(two_cases: Path) -> None:
    dataset = open_dataset(two_cases)
    for path in (two_cases / "images").iterdir():
        path.write_bytes(b"")
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
    assert result.channels[0].reason


def test_ignored_voxels_are_not_foreground(make_data: DataMaker) -> None:
    result = fingerprint(open_dataset(make_data(labels={"background": 0, "organ": 1, "ignore": 2})))
    assert result.ignore == 2
    assert [entry.name for entry in result.classes] == ["organ"]
    # 4 x 4 x 2 voxels of either, in 16**3
    assert result.foreground_share == pytest.approx(32 / (16**3 - 32), rel=1e-4)


def test_cases_without_foreground_do_not_change_its_intensities(two_cases: Path) -> None:
    for name in ("air_1", "air_2", "air_3"):  # more of them than of the others
        write_case(two_cases, name, np.full((10, 8, 6), -1000), np.zeros((10, 8, 6)), np.diag([1.0, 2.0, 3.0, 1.0]))
    result = fingerprint(open_dataset(two_cases))
    assert len(result.cases) == 5
    assert (result.channels[0].mean, result.channels[0].low) == (20.0, 10.0)


def test_the_background_may_have_another_value_than_0(two_cases: Path) -> None:
    """As of scribbles: 0 is not annotated, 1 background, 2 the cell."""
    for path in (two_cases / "labels").iterdir():
        label = np.asarray(read_volume(path).image[0]) + 1
        label[:3] = 0
        write_volume(label.astype(np.uint8), path, affine=np.diag([1.0, 2.0, 3.0, 1.0]), overwrite=True)
    (two_cases / "images").rename(two_cases / "imagesTr")
    (two_cases / "labels").rename(two_cases / "labelsTr")
    for path in (two_cases / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    labels = {"ignore": 0, "background": 1, "cell": 2}
    manifest = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (two_cases / "dataset.json").write_text(json.dumps(manifest))
    result = fingerprint(open_dataset(two_cases))
    assert result.labels == {"background": 1, "cell": 2}
    assert result.channels[0].mean == 20.0
    assert [entry.name for entry in result.classes] == ["cell"]


def test_regions_are_known_and_their_values_measured(make_data: DataMaker) -> None:
    root = make_data(labels={"background": 0, "rim": 1, "core": 2})
    manifest = json.loads((root / "dataset.json").read_text())
    manifest |= {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (root / "dataset.json").write_text(json.dumps(manifest))
    result = fingerprint(open_dataset(root))
    assert result.regions == {"whole": [1, 2], "core": [2]}
    assert result.class_names == ("whole", "core")
    assert [entry.name for entry in result.classes] == ["label_1", "core"]


def test_thickness_of_sparsely_annotated_slices_is_that_within_them() -> None:
    """A rod along axis 0, of which every fifth slice is annotated."""
    label = np.zeros((21, 20, 20), np.float32)
    label[:, 5:13, 6:14] = 1
    dense = _thickness_of(label)
    label[np.arange(21) % 5 != 0] = 255
    assert dense == pytest.approx(4, rel=0.2)
    assert _thickness_of(label) == pytest.approx(4, rel=0.2)
    label[label == 0] = 255
    assert _thickness_of(label) == 0.0  # no surface is annotated


def _thickness_of(label: np.ndarray) -> float:
    record = ReadRecord(Path("a.nii.gz"), "nifti", Geometry(np.eye(4), label.shape))
    case = measure_case("a", np.ones((1, *label.shape), np.float32), label[None], record, ignore=255)
    return case.class_thickness_mm[1]


def test_labels_of_background_only_cannot_be_planned(make_data: DataMaker) -> None:
    root = make_data()
    for path in (root / "labelsTr").iterdir():
        write_volume(np.zeros((16, 16, 16), np.uint8), path, overwrite=True)
    with pytest.raises(DataError, match="all labels have background only"):
        fingerprint(open_dataset(root))
    findings = examine(root).findings
    assert [finding.cause for finding in findings if finding.severity == "error"] == [
        "all labels have background only: there is nothing to learn"
    ]


def test_check_reports_the_share_that_is_not_annotated(make_data: DataMaker, capsys: pytest.CaptureFixture) -> None:
    root = make_data(labels={"background": 0, "organ": 1, "ignore": 2})
    for path in (root / "labelsTr").iterdir():
        label = np.full((16, 16, 16), 2, np.uint8)
        label[0] = 0
        label[0, :8] = 1
        write_volume(label, path, overwrite=True)
    result = examine(root)
    summary = result.summary()
    assert summary["ignored_fraction"] == pytest.approx(15 / 16)
    assert [entry["fraction"] for entry in summary["classes"].values()] == [0.5, 0.5]
    _print_tables(result)
    assert "not annotated (ignored): 93.8 % of the voxels" in capsys.readouterr().out


def test_thickness_of_simple_shapes() -> None:
    assert thickness(np.zeros((3, 3), bool), (1.0, 1.0)) == 0.0
    assert thickness(np.ones((1, 1, 1), bool), (1.0, 1.0, 1.0)) == pytest.approx(1 / 3)
    assert thickness(np.ones((1000, 4), bool), (1.0, 1.0)) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Anterior", "Posterior"], {"Anterior", "Posterior"}),
        (["kidney_L", "kidney_R"], {"kidney_L", "kidney_R"}),
        (["lungLeft", "heart"], {"lungLeft"}),
        (["vertebra_L1", "vertebra_T12", "spleen", "liver", "aorta", "rectum"], set()),
        (["upper lobe", "ground-glass"], {"upper lobe"}),
    ],
)
def test_words_of_direction_are_found(names: list[str], expected: set[str]) -> None:
    labels = {name: value for value, name in enumerate(["background", *names])}
    assert set(orientation_words(labels)) == expected


def test_a_class_of_value_0_beside_another_background_is_measured(tmp_path: Path) -> None:
    label = np.full((20, 20, 20), 1, np.uint8)
    label[4:8] = 0  # a plate
    label[12:14] = 2
    volume = read_volume(write_volume(label.astype(np.float32), tmp_path / "a.nii.gz", affine=np.eye(4)))
    case = measure_case("a", volume.image, label[None].astype(np.float32), volume.record, background=1)
    whole, half = (thickness(label == value, (1.0, 1.0, 1.0)) for value in (0, 2))
    assert case.class_thickness_mm == pytest.approx({0: whole, 2: half}, rel=1e-4)


def test_large_label_values_stay_themselves(tmp_path: Path) -> None:
    label = np.zeros((20, 20, 20), np.int32)
    label[4:8] = 70_000
    label[12:14] = 70_001  # not annotated
    volume = read_volume(write_volume(label.astype(np.float32), tmp_path / "a.nii.gz", affine=np.eye(4)))
    case = measure_case("a", volume.image, label[None].astype(np.float32), volume.record, ignore=70_001)
    assert case.class_voxels == {0: 14 * 400, 70_000: 4 * 400}
    known = label != 70_001
    expected = thickness(label == 70_000, (1.0, 1.0, 1.0), known=known)
    assert case.class_thickness_mm == pytest.approx({70_000: expected}, rel=1e-4)
    assert case.channels[0].mean == pytest.approx(70_000)
