"""Images are turned as radiologists look at them; classes have numbers and colours of their own."""

import numpy as np
import pytest

from medunet.errors import DataError
from medunet.reports import ClassCodes
from medunet.reports.view import as_seen, window

TURNED = np.array([[0.0, 2, 0, 0], [0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 1]])
"""Axes stored as superior, right, anterior: voxel (i, j, k) is at RAS (2 j, 3 k, 5 i)."""


def test_the_patients_right_front_and_head_come_first_whatever_the_order_of_the_files_axes() -> None:
    voxels = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (seen,), spacing = as_seen([voxels], np.diag([2.0, 3, 5, 1]))
    assert seen[0, 0, 0] == voxels[-1, -1, -1]
    assert np.array_equal(seen, voxels[::-1, ::-1, ::-1].T)
    assert spacing == (5, 3, 2)
    for stored, affine in ((voxels[::-1, ::-1], np.diag([-2.0, -3, 5, 1])), (np.moveaxis(voxels, 2, 0), TURNED)):
        (same,), spacing = as_seen([stored], affine)
        assert np.array_equal(same, seen)
        assert spacing == (5, 3, 2)


def test_one_slice_of_a_patient_is_seen_from_the_feet() -> None:
    pixels = np.arange(6).reshape(2, 3)  # a DICOM slice: x to the left, y to the back
    (seen,), spacing = as_seen([pixels], np.diag([-0.5, -0.7, 1, 1]))
    assert np.array_equal(seen, pixels.T[None])
    assert spacing[1:] == (0.7, 0.5)


def test_the_window_excludes_extreme_values() -> None:
    image = np.linspace(0, 100, 10_000).reshape(100, 100)
    image[0, 0], image[0, 1] = 1e6, np.nan
    low, high = window(image)
    assert 0 <= low < 2
    assert 98 < high <= 101


def test_overlapping_classes_are_encoded_equally_in_reference_and_prediction() -> None:
    # a prediction writes a region with one of its values; the reference has all of them
    members = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    codes = ClassCodes(list(members))
    assert codes.encode(np.array([0, 1, 2, 3]), members).tolist() == [0, 1, 4, 5]
    assert codes.unions == [[1, 2], [1, 2, 3]]
    assert codes.labels("air") == {"air": 0, "whole": (1, 4, 5), "core": (2, 4, 5), "enhancing": (3, 5)}
    # a run with other values, of whose classes one is alone
    assert codes.encode(np.array([7, 8]), {"whole": (7, 8), "core": (8,)}).tolist() == [1, 4]
    assert codes.encode(np.array([5, 255]), {"core": (5,)}).tolist() == [2, 0]


def test_more_classes_than_a_byte_can_number_are_an_error() -> None:
    names = [str(number) for number in range(300)]
    with pytest.raises(DataError, match="too many classes"):
        ClassCodes(names).encode(np.array([1]), {name: (number + 1,) for number, name in enumerate(names)})
