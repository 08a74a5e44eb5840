"""Components of classes and regions that a rule removes."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import KeepLargestConnectedComponent

from medunet.errors import ConfigError
from medunet.transforms import CleanComponentsd, CleanRegionsd, clean_labels, clean_regions

WHOLE_CORE_ENHANCING = [[1, 2, 3], [2, 3], [3]]
ORDER = [1, 2, 3]


def blobs(shape: tuple[int, ...] = (33, 34, 35)) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 12, [-(-n // 4) for n in shape])
    labels = np.kron(coarse, np.ones((4,) * len(shape), int))[tuple(slice(0, n) for n in shape)]
    return np.where(labels <= 3, labels, 0).astype(np.uint8)


@pytest.mark.parametrize("shape", [(33, 34, 35), (65, 66)])
def test_the_largest_component_matches_monai(shape: tuple[int, ...]) -> None:
    labels = blobs(shape)
    largest = KeepLargestConnectedComponent(applied_labels=[1, 3], is_onehot=False, independent=True)
    expected = largest(labels[None].copy())  # MONAI writes into its input
    cleaned = clean_labels(labels, {1: (True, 0.0), 3: (True, 0.0)}, voxel_size=1.0)
    np.testing.assert_array_equal(cleaned, np.asarray(expected)[0])
    assert (cleaned != labels).any()
    np.testing.assert_array_equal(labels, blobs(shape))  # not changed in place


def test_sizes_are_in_millimetres() -> None:
    labels = torch.zeros(1, 9, 9, 9, dtype=torch.uint8)
    labels[0, 0, 0, :2], labels[0, 5:8, 5:8, 5:8] = 1, 1
    affine = torch.diag(torch.tensor([-2.0, -2.0, 3.0, 1.0], dtype=torch.float64))  # 12 mm³ per voxel
    for size, left in ((23.9, 29), (24.1, 27), (325.0, 0)):
        item = {"pred": MetaTensor(labels.clone(), affine=affine)}
        cleaned = CleanComponentsd("pred", min_size=[0, size])(item)["pred"]
        assert int(cleaned.sum()) == left
        assert cleaned.dtype == torch.uint8
        assert torch.equal(cleaned.affine, affine)


def test_other_classes_and_empty_maps_are_unchanged() -> None:
    labels = blobs()
    cleaned = clean_labels(labels, {2: (True, 5.0), 7: (True, 5.0)}, voxel_size=1.0)
    np.testing.assert_array_equal(cleaned[labels != 2], labels[labels != 2])
    empty = torch.zeros(1, 5, 6)
    assert torch.equal(CleanComponentsd("pred", keep_largest=[1])({"pred": empty})["pred"], empty)


def test_voxels_removed_from_a_region_stay_in_the_regions_around_it() -> None:
    labels = np.array([[1, 1, 1, 1, 1, 1, 0, 0], [1, 3, 1, 2, 3, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0]])
    cleaned = clean_regions(labels, {1: (True, 0.0)}, WHOLE_CORE_ENHANCING, order=ORDER, voxel_size=1.0)
    whole, core, enhancing = (np.isin(cleaned, values) for values in WHOLE_CORE_ENHANCING)
    assert np.array_equal(whole, labels > 0)
    assert core.nonzero()[1].tolist() == [3, 4]
    assert enhancing.nonzero()[1].tolist() == [4]  # the part within the removed core is removed, too


def test_larger_regions_are_cleaned_first() -> None:
    labels = np.array([[1, 2, 1, 0, 0, 2, 2, 0, 1, 1, 1, 2]])
    rules = {1: (True, 0.0), 0: (False, 3.0)}
    cleaned = clean_regions(labels, rules, WHOLE_CORE_ENHANCING, order=ORDER, voxel_size=1.0)
    # the core of two voxels is the largest, but no whole contains it any more
    assert cleaned.tolist() == [[1, 2, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1]]


def test_the_transform_of_regions_uses_sizes_in_millimetres() -> None:
    labels = torch.tensor([[[1, 2, 1, 3, 3, 1]]])
    small = CleanRegionsd("pred", WHOLE_CORE_ENHANCING, order=ORDER, min_size=[0, 2, 3])({"pred": labels})["pred"]
    assert small.tolist() == [[[1, 1, 1, 2, 2, 1]]]
    coarse = clean_regions(labels[0].numpy(), {1: (False, 2.0)}, WHOLE_CORE_ENHANCING, order=ORDER, voxel_size=2.0)
    assert coarse.tolist() == labels[0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"regions": [[1, 3], [2, 3]], "order": [1, 3], "keep_largest": [0]},  # without the first, 3 has no value
        {"regions": [[1, 2], [2]], "order": [1, 2], "keep_largest": [2]},
        {"regions": [[1, 2], [2]], "order": [1, 2], "min_size": [0, 0, 1]},
        {"regions": [[1, 2], [2]], "order": [1], "min_size": [1]},
        *({"keep_largest": [0]}, {"min_size": [1.0]}, {"min_size": [0, -1.0]}),
    ],
)
def test_invalid_rules_are_rejected(options: dict) -> None:
    with pytest.raises(ConfigError):
        (CleanRegionsd if "regions" in options else CleanComponentsd)("pred", **options)
