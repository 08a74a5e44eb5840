"""Components of label maps that go and that stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import KeepLargestConnectedComponent

from medunet.errors import ConfigError
from medunet.transforms import CleanComponentsd, clean_labels


def blobs(shape: tuple[int, ...] = (33, 34, 35), *, classes: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 12, [-(-n // 4) for n in shape])
    labels = np.kron(coarse, np.ones((4,) * len(shape), int))[tuple(slice(0, n) for n in shape)]
    return np.where(labels <= classes, labels, 0).astype(np.uint8)


@pytest.mark.parametrize("shape", [(33, 34, 35), (65, 66)])
def test_the_largest_component_is_monais(shape: tuple[int, ...]) -> None:
    labels = blobs(shape)
    largest = KeepLargestConnectedComponent(applied_labels=[1, 3], is_onehot=False, independent=True)
    expected = largest(labels[None].copy())  # MONAI writes into its input
    found = clean_labels(labels, {1: (True, 0.0), 3: (True, 0.0)}, voxel_size=1.0)
    np.testing.assert_array_equal(found, np.asarray(expected)[0])
    assert (found != labels).any()


def test_sizes_are_millimetres_not_voxels() -> None:
    labels = torch.zeros(1, 9, 9, 9, dtype=torch.uint8)
    labels[0, 0, 0, :2], labels[0, 5:8, 5:8, 5:8] = 1, 1
    affine = torch.diag(
        torch.tensor([-2.0, -2.0, 3.0, 1.0], dtype=torch.float64)
    )  # 12 mm³ a voxel, 24 mm³ the small one
    for size, left in ((23.9, 29), (24.1, 27), (325.0, 0)):
        transform = CleanComponentsd("pred", min_size=[0, size])
        cleaned = transform({"pred": MetaTensor(labels.clone(), affine=affine)})["pred"]
        assert int(cleaned.sum()) == left
        assert isinstance(cleaned, MetaTensor)
        assert cleaned.dtype == torch.uint8
        assert torch.equal(cleaned.affine, affine)


def test_other_classes_and_empty_maps_stay() -> None:
    labels = blobs()
    found = clean_labels(labels, {2: (True, 5.0), 7: (True, 5.0)}, voxel_size=1.0)
    np.testing.assert_array_equal(found[labels != 2], labels[labels != 2])
    empty = torch.zeros(1, 5, 6)
    assert torch.equal(CleanComponentsd("pred", keep_largest=[1])({"pred": empty})["pred"], empty)


def test_no_rule_changes_nothing_and_the_input_is_left_alone() -> None:
    labels = blobs()
    before = labels.copy()
    np.testing.assert_array_equal(clean_labels(labels, {}, voxel_size=1.0), before)
    clean_labels(labels, {1: (True, 0.0)}, voxel_size=1.0)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("options", [{"keep_largest": [0]}, {"min_size": [1.0]}, {"min_size": [0, -1.0]}])
def test_rules_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        CleanComponentsd("pred", **options)
