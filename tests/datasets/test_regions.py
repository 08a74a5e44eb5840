"""Regions of a dataset.json, in nnU-Net's words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.datasets import Region, check_dataset, open_dataset
from medunet.errors import DataError
from medunet.io import write_volume

BRATS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def write(root: Path, labels: dict[str, Any], values: list[int] | None = None, **manifest: Any) -> Path:
    label = np.array([[*(values or [0, 1, 2, 3])]], dtype=np.uint8).repeat(3, axis=0)[None].repeat(2, axis=0)
    write_volume(label, root / "labelsTr" / "a.nii.gz", affine=np.eye(4))
    write_volume(label.astype(np.float32), root / "imagesTr" / "a_0000.nii.gz", affine=np.eye(4))
    content = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz", **manifest}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def errors(root: Path) -> list[str]:
    findings = check_dataset(open_dataset(root), level="voxels")
    return [finding.cause for finding in findings if finding.severity == "error"]


def test_regions_are_read_with_their_label_values(tmp_path: Path) -> None:
    root = write(tmp_path, BRATS, regions_class_order=[1, 2, 3])
    dataset = open_dataset(root)
    expected = (Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("enhancing", (3,), 3))
    assert dataset.regions == expected
    assert dataset.labels == {"background": 0, "label_1": 1, "label_2": 2, "enhancing": 3}
    assert errors(root) == []
    kidneys = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}  # as in KiTS 2023
    dataset = open_dataset(write(tmp_path, kidneys, regions_class_order=[1, 3, 2]))  # the order need not rise
    assert [region.written for region in dataset.regions] == [1, 3, 2]


def test_msd_lists_may_have_regions_and_ignored_voxels(tmp_path: Path) -> None:
    case = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    labels = {**BRATS, "ignore": 9}
    root = write(tmp_path, labels, values=[0, 1, 3, 9], regions_class_order=[1, 2, 3], training=[case])
    assert open_dataset(root).ignore == 9
    assert len(open_dataset(root).regions) == 3
    assert errors(root) == []


def test_a_list_of_one_value_is_a_class(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, {"background": [0], "liver": [1]}))
    assert (dataset.labels, dataset.regions) == ({"background": 0, "liver": 1}, ())


def test_check_reports_a_value_outside_all_regions(tmp_path: Path) -> None:
    (error,) = errors(write(tmp_path, BRATS, values=[0, 1, 3, 4], regions_class_order=[1, 2, 3]))
    assert "unknown values" in error


@pytest.mark.parametrize(
    ("labels", "order", "cause"),
    [
        (BRATS, None, "regions need regions_class_order"),
        (BRATS, [1, 2], "does not fit the regions"),
        (BRATS, [1, 2, 2], "does not fit the regions"),
        (BRATS, [1, 1, 3], "does not fit the regions"),  # 1 is not a value of the core
        ({"whole": [1, 2]}, [1], "regions need a background"),
        ({"background": 0, "whole": [0, 1]}, [1], "must not contain the background"),
        ({"background": 0, "whole": [1, 2], "ignore": 2}, [1], "must not contain the background or ignored"),
        ({"background": 0, "whole": [1, 2], "ignore": [3, 4]}, [1], "ignore must be one value"),
        ({"background": 0, "whole": [1, 2.5]}, [1], "invalid region"),
        ({"background": 0, "whole": [1, -2]}, [1], "invalid region"),
        ({"background": 0, "whole": [1, 2], "core": []}, [1, 2], "invalid region"),
    ],
)
def test_unusable_regions_are_rejected(tmp_path: Path, labels: Any, order: Any, cause: str) -> None:
    root = write(tmp_path, labels, **({} if order is None else {"regions_class_order": order}))
    with pytest.raises(DataError, match=rf"dataset\.json: .*{cause}"):
        open_dataset(root)
