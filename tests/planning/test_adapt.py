"""What a configuration takes over from a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.errors import ConfigError
from medunet.geometry import Geometry
from medunet.io import write_volume
from medunet.planning import adapt, fit_patch
from medunet.planning.adapt import in_ras_order

CONFIG = {
    "spatial_dims": 3,
    "in_channels": 1,
    "label_values": [0, 1],
    "label_names": ["background", "foreground"],
    "spacing_mm": [1.0, 1.0, 1.0],
    "patch_size": [32, 32, 32],
    "network_def": {"channels": [8, 16, 32], "padding": "same"},
}


def write_case(root: Path, name: str, shape: tuple[int, int, int], affine: np.ndarray) -> None:
    label = np.zeros(shape, np.uint8)
    label[2:5, 2:5] = 7
    write_volume(np.zeros(shape, np.float32), root / "images" / f"{name}.nii.gz", affine=affine)
    write_volume(label, root / "labels" / f"{name}.nii.gz", affine=affine)


def test_classes_spacing_and_patch_follow_the_data(tmp_path: Path) -> None:
    # stored S, R, A: the first axis runs to the head with 5 mm
    affine = np.array([[0, 0.5, 0, 0], [0, 0, 2.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    for name in ("a", "b", "c"):
        write_case(tmp_path, name, (20, 64, 16), affine)
    found = adapt(open_dataset(tmp_path), CONFIG)
    assert found["label_values"] == [0, 7]
    assert found["label_names"] == ["background", "label_7"]
    assert found["spacing_mm"] == [0.5, 2.0, 5.0]
    # in RAS order the image is 64 x 16 x 20; rounded up to multiples of 4 it fits into 32**3 voxels
    assert found["patch_size"] == [64, 16, 20]
    assert "in_channels" not in found


def test_the_wrong_number_of_dimensions_is_refused(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path, kind="cells", cases=2, size=(64, 64))
    with pytest.raises(ConfigError, match="unet_2d"):
        adapt(open_dataset(tmp_path), CONFIG)


def test_volumes_of_one_slice_give_a_patch_in_the_plane(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_case(tmp_path, name, (64, 48, 1), np.diag([0.5, 0.5, 5.0, 1.0]))
    config = {**CONFIG, "spatial_dims": 2, "patch_size": [64, 16]}
    found = adapt(open_dataset(tmp_path), config)
    assert found["patch_size"] == [32, 32]
    assert "spacing_mm" not in found


def test_voxels_without_annotation_need_a_plan(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_case(tmp_path, name, (16, 16, 16), np.eye(4))
    labels = {"background": 0, "tumour": 7, "ignore": 8}
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    (tmp_path / "labels").rename(tmp_path / "labelsTr")
    for path in (tmp_path / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".", "_0000.", 1)))
    manifest = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    dataset = open_dataset(tmp_path)
    assert dataset.ignore == 8
    with pytest.raises(ConfigError, match="medunet plan"):
        adapt(dataset, CONFIG)
    assert adapt(dataset, {**CONFIG, "steps": {"encode": {"ignore_value": 8}}})["label_values"] == [0, 7]


def test_a_patch_stays_within_its_budget_and_its_multiple() -> None:
    patch = fit_patch([500, 400, 33], voxels=40_000, multiple=8)
    assert np.prod(patch) <= 40_000
    assert all(edge % 8 == 0 for edge in patch)


def test_axes_are_sorted_into_ras_order() -> None:
    flipped = np.diag([-1.0, 2.0, -3.0, 1.0])
    assert in_ras_order([4, 5, 6], Geometry(flipped, (4, 5, 6))) == [4, 5, 6]
