"""Classes that overlap have numbers of their own, the same in every label map of a page."""

from __future__ import annotations

import numpy as np
import pytest

from medunet.errors import DataError
from medunet.reports import ClassCodes


def test_values_become_places_and_unknown_ones_background() -> None:
    codes = ClassCodes(["missing", "cell"])
    assert codes.encode(np.array([255, 0, 9]), {"background": (0,), "cell": (255,)}).tolist() == [2, 0, 0]
    assert codes.unions == []
    assert codes.labels("background") == {"background": 0, "missing": (1,), "cell": (2,)}


def test_overlapping_classes_mean_the_same_in_reference_and_prediction() -> None:
    # a prediction writes a region with one of its values; the reference has all of them
    members = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    codes = ClassCodes(list(members))
    reference = codes.encode(np.array([0, 1, 2, 3]), members)
    assert codes.encode(np.array([0, 1, 2, 3]), members).tolist() == reference.tolist() == [0, 1, 4, 5]
    assert codes.unions == [[1, 2], [1, 2, 3]]
    assert codes.labels("air") == {"air": 0, "whole": (1, 4, 5), "core": (2, 4, 5), "enhancing": (3, 5)}
    # a run with other values, of whose classes one is alone
    assert codes.encode(np.array([7, 8]), {"whole": (7, 8), "core": (8,)}).tolist() == [1, 4]
    assert codes.encode(np.array([5]), {"core": (5,)}).tolist() == [2]


def test_more_classes_than_a_byte_tells_apart_are_an_error() -> None:
    names = [str(number) for number in range(300)]
    with pytest.raises(DataError, match="too many classes"):
        ClassCodes(names).encode(np.array([1]), {name: (number + 1,) for number, name in enumerate(names)})
