from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from medunet.datasets import examine, write_phantom_dataset
from medunet.errors import DataError
from medunet.io import read_volume, write_volume


@pytest.fixture
def folder(tmp_path):
    write_phantom_dataset(tmp_path / "data", kind="mr", cases=4, test_cases=1, size=(17, 18, 19))
    return tmp_path / "data"


@pytest.fixture
def bare(folder):
    """The same without `dataset.json`: labels have to be read."""
    (folder / "dataset.json").unlink()
    return folder


def test_sound_data_set(folder):
    result = examine(folder)
    assert not result.fails
    assert result.findings == []
    summary = result.summary()
    assert (summary["cases"], summary["test_cases"], summary["spatial_dims"]) == (4, 1, 3)
    assert summary["size"]["smallest"][0] <= 17 <= summary["size"]["largest"][0]
    assert sum(entry["fraction"] for entry in summary["classes"].values()) == pytest.approx(1)
    assert all(entry["median_ml"] > 0 for entry in summary["classes"].values())
    json.dumps(result.as_dict(), allow_nan=False)


def test_headers_alone_have_no_statistics(folder):
    result = examine(folder, level="header")
    assert result.statistics == []
    assert "size" not in result.summary()


def test_image_that_also_serves_as_test_is_found(folder):
    train = sorted((folder / "imagesTr").glob("*.nii.gz"))[1]
    test = next((folder / "imagesTs").glob("*.nii.gz"))
    shutil.copy(train, test)
    (finding,) = (f for f in examine(folder).findings if "test image" in f.cause)
    assert finding.file == str(test)
    assert finding.severity == "warning"


def test_all_faults_are_told_at_once(bare):
    images, labels = sorted((bare / "imagesTr").glob("*.nii.gz")), sorted((bare / "labelsTr").glob("*.nii.gz"))
    images[0].write_bytes(images[0].read_bytes()[:-200])
    labels[1].unlink()
    grid = read_volume(labels[2])
    write_volume(np.full(grid.record.geometry.shape, 0.5, np.float32), labels[2], affine=grid.image.affine)
    result = examine(bare)
    assert result.fails
    errors = {finding.cause.split(" (")[0] for finding in result.findings if finding.severity == "error"}
    assert errors == {
        "truncated gzip file",
        f"1 image without label: {images[1].name}",
        "label has fractional values",
    }
    assert len([f for f in result.findings if "fractional" in f.cause]) == 1


def test_files_missing_from_the_list_are_told_with_the_rest(folder):
    labels = sorted((folder / "labelsTr").glob("*.nii.gz"))
    labels[0].unlink()
    labels[1].write_bytes(b"")
    causes = [finding.cause for finding in examine(folder).findings if finding.severity == "error"]
    assert len(causes) == 2
    assert "without label" in causes[0] or "missing files" in causes[0]
    assert causes[1] == "file has zero bytes"


def test_folder_without_data_set_is_a_finding(tmp_path):
    result = examine(tmp_path)
    assert result.fails
    assert result.findings[0].cause.startswith("no data set found")
    assert result.summary() == {}


def test_path_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        examine(tmp_path / "nowhere")


def test_progress_counts_to_the_number_of_cases(folder):
    total, steps = [], []
    examine(folder, started=total.append, done=lambda: steps.append(1))
    assert total == [5]
    assert len(steps) == 5


@pytest.mark.data
def test_real_dicom_cases_are_read_with_their_contours(test_data):
    result = examine(test_data / "dicom" / "rtstruct_STS_002")
    assert not result.fails
    assert result.dataset.labels == {"background": 0, "GTV_Mass_CT": 1, "GTV_Mass_MR_T1": 2, "GTV_Mass_PET": 3}
    assert [len(case.class_voxels) for case in result.statistics] == [2, 2, 2]
