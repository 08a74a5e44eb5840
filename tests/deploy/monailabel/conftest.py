"""Orthanc with a synthetic and a real CT, and a label server in front of it, once for all tests that need it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medunet.datasets import make_phantom

from .real import Client, environment, serving, train_3d
from .store import orthanc, upload, write_series


@dataclass
class Clinic:
    """A store, a server in front of it, and the content of the store."""

    url: str
    store: str
    organs: Path
    series: Path
    series_uid: str
    has_patient: bool

    @property
    def client(self) -> Client:
        return Client(self.url)


@pytest.fixture(scope="session")
def clinic(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, make_series: Callable[..., Path]
) -> Iterator[Clinic]:
    environment()
    folder = tmp_path_factory.mktemp("clinic")
    data = Path(os.environ.get("MEDUNET_TEST_DATA") or pytestconfig.rootpath.parent / "shared" / "data")
    patient = data / "dicom" / "ct_abdomen_crlm" / "image"
    with orthanc(folder / "store") as store:
        _, organs = train_3d(folder)
        uid = write_series(make_phantom("ct", seed=(7, 90)), make_series, folder / "series")
        upload(store, folder / "series")
        if patient.is_dir():
            upload(store, patient)
        with serving([organs], f"{store}/dicom-web", folder) as url:
            yield Clinic(url, store, organs, folder / "series", uid, patient.is_dir())
