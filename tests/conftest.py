"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # MONAI's LoadImage builds all its readers, and one complains where NVIDIA's codec is not installed.
    config.addinivalue_line("filterwarnings", "ignore:NvImgCodecPydicomReader:UserWarning")


@pytest.fixture(scope="session")
def test_data(pytestconfig: pytest.Config) -> Path:
    """The folder of real images: MEDUNET_TEST_DATA, or ../shared/data beside the project."""
    folder = Path(os.environ.get("MEDUNET_TEST_DATA") or pytestconfig.rootpath.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("real images are absent: set MEDUNET_TEST_DATA")
    return folder
