"""Orthanc with studies and a label server before it, once for all tests that ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .clinic import Clinic, open_clinic


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Clinic]:
    data = Path(os.environ.get("MEDUNET_TEST_DATA") or pytestconfig.rootpath.parent / "shared" / "data")
    yield from open_clinic(tmp_path_factory.mktemp("clinic"), data / "dicom" / "ct_abdomen_crlm" / "image")
