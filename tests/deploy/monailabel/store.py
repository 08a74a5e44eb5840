"""A DICOMweb store for tests: Orthanc with its plugin, and synthetic DICOM series."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medunet.datasets.phantom import Phantom
from medunet.deploy.monailabel.server import usable_port
from medunet.geometry import flip_ras_lps

SECONDS_TO_START = 60.0


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Orthanc's address. MEDUNET_ORTHANC may name a folder into which its packages were unpacked."""
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
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, folder / "orthanc.log")
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
    """JSON from Orthanc."""
    with urllib.request.urlopen(url) as answer:
        return json.loads(answer.read())


def download(url: str) -> bytes:
    """A file from Orthanc."""
    with urllib.request.urlopen(url) as answer:
        content: bytes = answer.read()
        return content


def write_series(phantom: Phantom, folder: Path) -> str:
    """Write a synthetic CT as a DICOM series and return its SeriesInstanceUID."""
    folder.mkdir(parents=True)
    lps = flip_ras_lps(phantom.affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = [*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1])]
    voxels = np.rint(phantom.image).astype("<i2")
    texts = {
        "PatientName": "Made^Organs",
        "PatientID": "MADE-1",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyID": "1",
    }
    texts |= {"StudyDate": "20200102", "StudyTime": "030405", "SeriesDate": "20200102", "SeriesTime": "030405"}
    texts |= {"AccessionNumber": "", "ReferringPhysicianName": "", "PositionReferenceIndicator": "", "Modality": "CT"}
    texts |= {"StudyDescription": "synthetic organs", "SeriesDescription": "synthetic CT", "Manufacturer": "medunet"}
    texts |= {"PatientPosition": "HFS", "PhotometricInterpretation": "MONOCHROME2", "RescaleType": "HU"}
    numbers = {"SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}
    numbers |= {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 40, "WindowWidth": 400, "SeriesNumber": 1}
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for index in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        header = FileDataset(str(folder / f"{index:03d}.dcm"), {}, file_meta=meta, preamble=bytes(128))
        for name, value in (texts | numbers | uids).items():
            setattr(header, name, value)
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        header.ImageType, header.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], index + 1
        header.Rows, header.Columns = voxels.shape[1], voxels.shape[0]
        header.PixelSpacing = [round(float(spacing[1]), 6), round(float(spacing[0]), 6)]
        header.SliceThickness = round(float(spacing[2]), 6)
        header.ImageOrientationPatient = [round(float(v), 6) for v in cosines]
        header.ImagePositionPatient = [round(float(v), 6) for v in lps[:3, 3] + index * lps[:3, 2]]
        header.PixelData = np.ascontiguousarray(voxels[:, :, index].T).tobytes()
        header.save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)
    return str(uids["SeriesInstanceUID"])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"Orthanc ended: {log.read_text()[-2000:]}")
        try:
            get(f"{url}/system")
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail("Orthanc does not answer")
