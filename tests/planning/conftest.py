"""Small data sets of known content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from medunet.io import write_volume


class DataMaker:
    """Writes an nnU-Net raw folder of small random images with a box of each label."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self,
        *,
        cases: int = 3,
        shape: Sequence[int] = (16, 16, 16),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        channels: Sequence[str] = ("MR",),
        labels: Mapping[str, int] | None = None,
        low: float = 0.0,
        high: float = 100.0,
    ) -> Path:
        labels = {"background": 0, "organ": 1} if labels is None else dict(labels)
        rng = np.random.default_rng(0)
        affine = np.diag([*spacing, 1.0])
        for case in range(cases):
            label = np.zeros(shape, np.uint8)
            for place, value in enumerate(value for value in labels.values() if value):
                label[2:6, 2:6, 3 * place + 1 : 3 * place + 3] = value
            write_volume(label, self.root / "labelsTr" / f"case_{case}.nii.gz", affine=affine)
            for channel in range(len(channels)):
                image = rng.uniform(low, high, shape).round().astype(np.float32)
                image[0, 0, 0] = low
                write_volume(image, self.root / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz", affine=affine)
        manifest = {
            "channel_names": {str(index): name for index, name in enumerate(channels)},
            "labels": labels,
            "numTraining": cases,
            "file_ending": ".nii.gz",
        }
        (self.root / "dataset.json").write_text(json.dumps(manifest))
        return self.root


@pytest.fixture
def make_data(tmp_path: Path) -> DataMaker:
    return DataMaker(tmp_path / "Dataset001")
