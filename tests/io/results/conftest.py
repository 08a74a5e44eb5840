"""A label map that every format must bring back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def labelled() -> Callable[..., np.ndarray]:
    """A label map ``(columns, rows, slices)`` with 1 and 5: parts, a hole with an island, single voxels, the rim."""

    def make(columns: int = 23, rows: int = 19, slices: int = 6) -> np.ndarray:
        voxels = np.zeros((columns, rows, slices), np.uint8)
        voxels[2:15, 3:16, 1:4] = 1
        voxels[5:11, 6:12, 2] = 0
        voxels[8, 9, 2] = 1  # an island in the hole
        voxels[0, 0, 0] = voxels[-1, -1, -1] = 1
        voxels[16:, 1:4, 0:5] = 5
        voxels[7, 9, 2] = 5
        voxels[20, 10, 3] = voxels[21, 11, 3] = 5  # touch at a corner
        return voxels

    return make
