"""A label map that every format must bring back, and DICOM results of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.io import read_header
from medunet.io.dicom.references import read_planes, save_dataset
from medunet.io.dicom.rtstruct import make_rtstruct
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments

LABELS = {"background": 0, "Leber": 1, "Knöchel": 5}


@pytest.fixture
def labelled() -> Callable[..., np.ndarray]:
    """Return a label map ``(columns, rows, slices)`` with 1 and 5: a hole with an island, single voxels, rims."""

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


@pytest.fixture
def written() -> Callable[..., Path]:
    """Return a function that writes a DICOM SEG or RTSTRUCT of a label map on the grid of a series."""

    def write(kind: str, folder: Path, voxels: np.ndarray, path: Path, **options: Any) -> Path:
        if kind == "seg":
            pytest.importorskip("highdicom")
        record = read_header(folder)
        make = make_dicom_seg if kind == "seg" else make_rtstruct
        planes, segments = read_planes(record.frames, record.geometry), as_segments(LABELS, **options)
        dataset = make(voxels, segments, planes, algorithm={"name": "medunet", "version": "1"})
        save_dataset(dataset, path, implicit=kind == "rtstruct")
        return path

    return write
