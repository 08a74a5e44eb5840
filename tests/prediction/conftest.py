"""Runs with random weights, and an image to predict."""

from pathlib import Path

import numpy as np
import pytest

from medunet.io import write_volume
from tests.support.small import untrained_run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def other_fold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same plan with other weights."""
    return untrained_run(tmp_path_factory.mktemp("fold") / "run", seed=1)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).normal(size=(17, 19, 16)).astype(np.float32)
    return write_volume(voxels, tmp_path / "case.nii.gz", affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
