"""A bundle without training, small images, and the library of Slicer's module on the path, as inside Slicer."""

import sys
from pathlib import Path

import numpy as np
import pytest
from small import untrained_run

from medunet.io import write_volume

sys.path.insert(0, str(Path(__file__).parents[2] / "medunet" / "deploy" / "slicer" / "MedUNet"))
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def make_bundle(folder: Path, *, seed: int = 0) -> Path:
    return untrained_run(folder, seed=seed, label_colors={"posterior": [1, 2, 3]})


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("label") / "run")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).normal(size=(17, 19, 16)).astype(np.float32)
    return write_volume(voxels, tmp_path / "case.nii.gz", affine=AFFINE)


@pytest.fixture
def label(tmp_path: Path) -> Path:
    voxels = np.zeros((17, 19, 16), np.uint8)
    voxels[4:9, 5:12, 3:10] = 1
    voxels[10:14, 5:12, 3:10] = 2
    return write_volume(voxels, tmp_path / "submitted.nii.gz", affine=AFFINE)
