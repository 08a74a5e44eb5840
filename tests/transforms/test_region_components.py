"""What leaves one region stays in those around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medunet.errors import ConfigError
from medunet.transforms import CleanRegionsd, RegionMasksd, clean_regions, values_outside

WHOLE_CORE_ENHANCING = [[1, 2, 3], [2, 3], [3]]
ORDER = [1, 2, 3]


def masks(labels: np.ndarray) -> list[np.ndarray]:
    return [np.isin(labels, values) for values in WHOLE_CORE_ENHANCING]


def test_a_region_is_cleaned_and_those_around_it_stay() -> None:
    labels = np.array([[1, 1, 1, 1, 1, 1, 0, 0], [1, 3, 1, 2, 3, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0]])
    cleaned = clean_regions(labels, {1: (True, 0.0)}, WHOLE_CORE_ENHANCING, order=ORDER, voxel_size=1.0)
    before, after = masks(labels), masks(cleaned)
    assert np.array_equal(after[0], before[0])
    assert after[1].nonzero()[1].tolist() == [3, 4]
    assert after[2].nonzero()[1].tolist() == [4]  # what lay within the core went with it


def test_larger_regions_are_cleaned_first() -> None:
    labels = np.array([[1, 2, 1, 0, 0, 2, 2, 0, 1, 1, 1, 2]])
    rules = {1: (True, 0.0), 0: (False, 3.0)}
    cleaned = clean_regions(labels, rules, WHOLE_CORE_ENHANCING, order=ORDER, voxel_size=1.0)
    # the core of two voxels is the largest, but no whole holds it any more
    assert cleaned.tolist() == [[1, 2, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1]]


def test_the_size_is_in_millimetres_and_the_transform_does_the_same() -> None:
    labels = torch.tensor([[[1, 2, 1, 3, 3, 1]]])
    kept = CleanRegionsd("pred", WHOLE_CORE_ENHANCING, order=ORDER, min_size=[0, 0, 2])({"pred": labels})["pred"]
    assert kept.tolist() == labels.tolist()
    small = CleanRegionsd("pred", WHOLE_CORE_ENHANCING, order=ORDER, min_size=[0, 2, 3])({"pred": labels})["pred"]
    assert small.tolist() == [[[1, 1, 1, 2, 2, 1]]]
    regions = RegionMasksd("pred", WHOLE_CORE_ENHANCING)({"pred": small})["pred"]
    assert regions.sum(dim=(1, 2)).tolist() == [6, 2, 0]
    coarse = clean_regions(labels[0].numpy(), {1: (False, 2.0)}, WHOLE_CORE_ENHANCING, order=ORDER, voxel_size=2.0)
    assert coarse.tolist() == labels[0].tolist()


def test_regions_that_only_overlap_keep_what_is_the_others() -> None:
    assert values_outside(0, [[1, 2], [2, 3]], [1, 3]) == {1: 0}
    assert values_outside(0, [[1, 2], [2, 3], [2]], [1, 3, 2]) == {1: 0, 2: 3}


@pytest.mark.parametrize(
    "options",
    [
        {"regions": [[1, 3], [2, 3]], "order": [1, 3], "keep_largest": [0]},  # without the first, 3 has no value
        {"regions": [[1, 2], [2]], "order": [1, 2], "keep_largest": [2]},
        {"regions": [[1, 2], [2]], "order": [1, 2], "min_size": [0, 0, 1]},
        {"regions": [[1, 2], [2]], "order": [1, 2], "min_size": [-1]},
        {"regions": [[1, 2], [2]], "order": [1], "min_size": [1]},
    ],
)
def test_what_cannot_be_cleaned_is_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        CleanRegionsd("pred", **options)
