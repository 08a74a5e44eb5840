"""What `medunet check` reports: all errors together, and a summary."""

import json
import shutil

import numpy as np
import pytest

from medunet.datasets import examine, write_phantom_dataset
from medunet.errors import DataError
from medunet.io import read_volume, write_volume


@pytest.fixture
def folder(tmp_path):
    write_phantom_dataset(tmp_path / "data", kind="ct", cases=4, test_cases=1, size=(17, 18, 19))
    return tmp_path / "data"


def test_valid_data_set_is_summarised(folder):
    total, steps, visited = [], [], []
    options = {"started": total.append, "done": lambda: steps.append(1), "visit": visited.append}
    result = examine(folder, **options)
    assert not result.fails
    assert result.findings == []
    assert (total, len(steps), len({view.case.name for view in visited})) == ([5], 5, 5)
    summary = result.summary()
    assert (summary["cases"], summary["test_cases"], summary["spatial_dims"]) == (4, 1, 3)
    assert summary["size"]["smallest"][0] <= 17 <= summary["size"]["largest"][0]
    assert sum(entry["fraction"] for entry in summary["classes"].values()) == pytest.approx(1)
    assert all(entry["median_ml"] > 0 for entry in summary["classes"].values())
    assert "digest" not in json.dumps(result.as_dict(), allow_nan=False)


def test_training_image_in_the_test_set_is_reported(folder):
    test = next((folder / "imagesTs").glob("*.nii.gz"))
    shutil.copy(sorted((folder / "imagesTr").glob("*.nii.gz"))[1], test)
    (finding,) = (f for f in examine(folder).findings if "test image" in f.cause)
    assert (finding.severity, finding.file) == ("warning", str(test))


def test_all_errors_are_reported_together_without_dataset_json(folder):
    (folder / "dataset.json").unlink()
    images, labels = (sorted((folder / part).glob("*.nii.gz")) for part in ("imagesTr", "labelsTr"))
    images[0].write_bytes(images[0].read_bytes()[:-200])
    labels[1].unlink()
    grid = read_volume(labels[2])
    write_volume(np.full(grid.record.geometry.shape, 0.5, np.float32), labels[2], affine=grid.image.affine)
    errors = [finding.cause.split(" (")[0] for finding in examine(folder).findings if finding.severity == "error"]
    expected = ["truncated gzip file", f"1 image without label: {images[1].name}", "label has fractional values"]
    assert sorted(errors) == sorted(expected)


def test_files_missing_from_the_list_are_reported_with_the_other_errors(folder):
    first, second, *_ = sorted((folder / "labelsTr").glob("*.nii.gz"))
    first.unlink()
    second.write_bytes(b"")
    missing, empty = (finding.cause for finding in examine(folder).findings if finding.severity == "error")
    assert "listed files are missing" in missing
    assert empty == "file has zero bytes"


def test_folder_without_data_set_is_a_finding_and_a_missing_folder_an_error(tmp_path):
    result = examine(tmp_path)
    assert result.fails
    assert result.findings[0].cause.startswith("no data set found")
    assert result.summary() == {}
    with pytest.raises(DataError, match="does not exist"):
        examine(tmp_path / "nowhere")


@pytest.mark.data
def test_real_dicom_cases_are_read_with_their_contours(test_data):
    result = examine(test_data / "dicom" / "rtstruct_STS_002")
    assert not result.fails
    assert result.dataset.labels == {"background": 0, "GTV_Mass_CT": 1, "GTV_Mass_MR_T1": 2, "GTV_Mass_PET": 3}
    assert [len(case.class_voxels) for case in result.statistics] == [2, 2, 2]
