from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medunet.io.dicom.contours import fill_contours, trace_contours


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (9, 11), (13, 13)])
@pytest.mark.parametrize("noise", [0, -1e-4, 1e-4], ids=["exact", "less", "more"])
def test_any_mask_comes_back_from_its_rounded_contours(shape, noise):
    generator = np.random.default_rng(0)
    for density in (0, 0.2, 0.5, 0.8, 1):
        for mask in generator.random((10, *shape)) < density:
            moved = [polygon + noise for polygon in trace_contours(mask)]
            assert np.array_equal(fill_contours(moved, shape), mask)


def test_each_part_is_one_polygon_whatever_its_holes():
    mask = np.zeros((20, 30), bool)
    mask[1:12, 1:14] = True
    mask[3:5, 3:5] = mask[6:10, 8:12] = False  # two holes
    mask[7, 9] = True  # an island within a hole
    mask[14:18, 20:29] = True
    assert len(list(trace_contours(mask))) == ndimage.label(mask)[1] == 3


def test_keyhole_leaves_and_returns_by_the_same_corners():
    mask = np.ones((7, 7), bool)
    mask[3, 3] = False
    [polygon] = trace_contours(mask)
    corners, counts = np.unique(polygon, axis=0, return_counts=True)
    assert sorted(counts)[-3:] == [1, 2, 2]  # one corner on the rim and one on the hole repeat
    assert len(polygon) == len(corners) + 2
    [rectangle] = trace_contours(np.ones((5, 9), bool))
    assert len(rectangle) == 8  # its corners are cut, and its straight sides have no vertices between


def test_polygon_within_a_polygon_is_a_hole_and_parts_outside_are_cut_off():
    square = np.array([[-5.0, -5], [-5, 5.5], [5.5, 5.5], [5.5, -5]])
    inner = np.array([[1.5, 1.5], [1.5, 3.5], [3.5, 3.5], [3.5, 1.5]])
    mask = fill_contours([square, inner], (8, 9))
    expected = np.zeros((8, 9), bool)
    expected[:6, :6] = True
    expected[2:4, 2:4] = False
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbours_with_a_common_side_share_no_voxel_and_omit_none(axis):
    first = np.array([[0.0, 0.0], [0, 6], [3, 6], [3, 0]])  # some centres are exactly on the common side
    squares = [square[:, ::-1] if axis else square for square in (first, first + np.array([3, 0]))]
    one, two = (fill_contours([square], (10, 10)) for square in squares)
    assert not (one & two).any()
    assert (one | two).sum() == 36
    assert one.sum() == 18
