"""A clinic for tests: Orthanc with a synthetic and a real CT, and a label server before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medunet.datasets import make_phantom

from .real import Client, environment, serving, train_3d
from .store import orthanc, upload, write_series


@dataclass
class Clinic:
    """A store, a server before it, and the content of the store."""

    url: str
    store: str
    organs: Path
    series: Path
    series_uid: str
    patient: Path | None

    @property
    def client(self) -> Client:
        return Client(self.url)


def open_clinic(folder: Path, real: Path) -> Iterator[Clinic]:
    """Until the generator is closed."""
    environment()
    with orthanc(folder / "store") as store:
        _, organs = train_3d(folder)
        uid = write_series(make_phantom("ct", seed=(7, 90)), folder / "made")
        upload(store, folder / "made")
        if real.is_dir():
            upload(store, real)
        with serving([organs], f"{store}/dicom-web", folder) as url:
            yield Clinic(url, store, organs, folder / "made", uid, real if real.is_dir() else None)
