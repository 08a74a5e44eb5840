"""Small data sets of known content."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from medunet.io import write_volume

DataMaker = Callable[..., Path]


@pytest.fixture
def make_data(tmp_path: Path) -> DataMaker:
    """Write an nnU-Net raw folder of small random images with a box of each label."""

    def make(
        *,
        cases: int = 3,
        shape: Sequence[int] = (16, 16, 16),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        channels: Sequence[str] = ("MR",),
        labels: Mapping[str, int] | None = None,
        low: float = 0.0,
        high: float = 100.0,
    ) -> Path:
        root = tmp_path / "Dataset001"
        labels = {"background": 0, "organ": 1} if labels is None else labels
        rng = np.random.default_rng(0)
        affine = np.diag([*spacing, 1.0])
        for case in range(cases):
            label = np.zeros(shape, np.uint8)
            for place, value in enumerate(value for value in labels.values() if value):
                label[2:6, 2:6, 3 * place + 1 : 3 * place + 3] = value
            write_volume(label, root / "labelsTr" / f"case_{case}.nii.gz", affine=affine)
            for channel in range(len(channels)):
                image = rng.uniform(low, high, shape).round().astype(np.float32)
                image[0, 0, 0] = low
                write_volume(image, root / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz", affine=affine)
        names = {str(index): name for index, name in enumerate(channels)}
        content = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"}
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return make


def declare(root: Path, **entries: object) -> Path:
    """Change entries of a data set's `dataset.json`."""
    manifest = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**manifest, **entries}))
    return root


def relabel(root: Path, label: np.ndarray) -> Path:
    """Replace the labels of all cases."""
    for path in (root / "labelsTr").iterdir():
        write_volume(label.astype(np.uint8), path, affine=np.eye(4), overwrite=True)
    return root
