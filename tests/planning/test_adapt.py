"""The overlay that fits a bundle to a data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.errors import ConfigError
from medunet.geometry import Geometry
from medunet.io import write_volume
from medunet.planning import adapt
from medunet.planning.adapt import in_ras_order

from .conftest import DataMaker

CONFIG: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "label_values": [0, 1],
    "label_names": ["background", "foreground"],
    "spacing_mm": [1.0, 1.0, 1.0],
    "patch_size": [32, 32, 32],
    "folds": 5,
    "network_def": {"channels": [8, 16, 32], "padding": "same"},
}


def write_cases(root: Path, shape: tuple[int, int, int], affine: np.ndarray) -> None:
    label = np.zeros(shape, np.uint8)
    label[2:5, 2:5] = 7
    for name in ("a", "b", "c"):
        write_volume(np.zeros(shape, np.float32), root / "images" / f"{name}.nii.gz", affine=affine)
        write_volume(label, root / "labels" / f"{name}.nii.gz", affine=affine)


def test_classes_spacing_and_patch_follow_the_data(tmp_path: Path) -> None:
    # stored S, R, A: the first axis runs to the head with 5 mm
    write_cases(tmp_path, (20, 64, 16), np.array([[0, 0.5, 0, 0], [0, 0, 2.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]]))
    assert adapt(open_dataset(tmp_path), CONFIG) == {
        "label_values": [0, 7],
        "label_names": ["background", "label_7"],
        "folds": 3,
        "spacing_mm": [0.5, 2.0, 5.0],
        # in RAS order the image is 64 x 16 x 20; rounded up to multiples of 4 it fits into 32**3 voxels
        "patch_size": [64, 16, 20],
    }


def test_another_number_of_dimensions_is_rejected(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path, kind="cells", cases=2, size=(64, 64))
    with pytest.raises(ConfigError, match="unet_2d"):
        adapt(open_dataset(tmp_path), CONFIG)


def test_volumes_of_one_slice_give_a_2d_patch(tmp_path: Path) -> None:
    write_cases(tmp_path, (64, 48, 1), np.diag([0.5, 0.5, 5.0, 1.0]))
    values = adapt(open_dataset(tmp_path), {**CONFIG, "spatial_dims": 2, "patch_size": [64, 16]})
    assert values["patch_size"] == [32, 32]
    assert "spacing_mm" not in values


def test_ignored_labels_need_a_planned_bundle(make_data: DataMaker) -> None:
    dataset = open_dataset(make_data(labels={"background": 0, "tumour": 7, "ignore": 8}))
    with pytest.raises(ConfigError, match="medunet plan"):
        adapt(dataset, CONFIG)
    assert adapt(dataset, {**CONFIG, "steps": {"encode": {"ignore_value": 8}}})["label_values"] == [0, 7]


def test_a_planned_bundle_keeps_its_values_and_rejects_other_data(make_data: DataMaker) -> None:
    dataset = open_dataset(make_data())
    planned = {**CONFIG, "planned": True, "label_names": ["background", "my name"], "spacing_mm": [3.0, 3.0, 3.0]}
    assert adapt(dataset, planned) == {"folds": 3}
    with pytest.raises(ConfigError, match="plan again"):
        adapt(dataset, {**planned, "label_values": [0, 1, 2]})


def test_a_flipped_axis_keeps_its_place_in_ras_order() -> None:
    assert in_ras_order([4, 5, 6], Geometry(np.diag([-1.0, 2.0, -3.0, 1.0]), (4, 5, 6))) == [4, 5, 6]
