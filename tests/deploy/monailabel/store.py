"""A DICOMweb store for tests: Orthanc with its plugin, and synthetic DICOM series."""

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from medunet.datasets.phantom import Phantom
from medunet.deploy.monailabel.server import usable_port

SECONDS_TO_START = 60.0


@contextlib.contextmanager
def orthanc(folder: Path, **more: object) -> Iterator[str]:
    """Yield the address of Orthanc with more settings.

    MEDUNET_ORTHANC may name a folder into which its packages were unpacked.
    """
    root = os.environ.get("MEDUNET_ORTHANC", "")
    program = shutil.which("Orthanc") or f"{root}/usr/sbin/Orthanc"
    plugin = f"{root}/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
    if not (Path(program).is_file() and Path(plugin).is_file()):
        pytest.skip("Orthanc with DICOMweb is not installed (Debian: orthanc orthanc-dicomweb)")
    port = usable_port()
    config = {
        "Name": "tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [plugin],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(config), encoding="utf-8")
    libraries = [f"{root}/usr/lib/x86_64-linux-gnu"] if root else []
    variables = {**os.environ, "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")])}
    if root:
        variables["DCMDICTPATH"] = f"{root}/usr/share/libdcmtk17/dicom.dic"
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log, env=variables)
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS_TO_START
            while True:
                with contextlib.suppress(OSError):
                    get(f"{url}/system")
                    break
                assert process.poll() is None, (folder / "orthanc.log").read_text()[-2000:]
                assert time.monotonic() < end, "Orthanc does not answer"
                time.sleep(0.3)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def upload(url: str, series: Path) -> None:
    """Store each file of a folder."""
    for path in sorted(path for path in series.iterdir() if path.is_file()):
        content = path.read_bytes()
        if content[128:132] == b"DICM":
            urllib.request.urlopen(urllib.request.Request(f"{url}/instances", data=content, method="POST")).read()


def get(url: str) -> Any:
    """Return JSON from Orthanc."""
    return json.loads(download(url))


def download(url: str) -> bytes:
    """Return a file from Orthanc."""
    with urllib.request.urlopen(url) as answer:
        content: bytes = answer.read()
        return content


def write_series(phantom: Phantom, make_series: Callable[..., Path], folder: Path) -> str:
    """Write a synthetic CT as a DICOM series and return its SeriesInstanceUID."""
    voxels, uid = np.rint(phantom.image).astype("<i2"), generate_uid()
    columns, rows, slices = voxels.shape
    tags = {"RescaleIntercept": 0, "WindowCenter": 40, "WindowWidth": 400, "PatientPosition": "HFS"}
    make_series(folder, columns=columns, rows=rows, slices=slices, series_uid=uid, **tags)
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.PixelData = np.ascontiguousarray(voxels[:, :, header.InstanceNumber - 1].T).tobytes()
        header.save_as(path)
    return uid
