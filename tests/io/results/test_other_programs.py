"""What programs of others say of our results: dcmqi and dicom3tools, where they are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medunet.io import read_header
from medunet.io.dicom.references import read_planes, save_dataset
from medunet.io.dicom.rtstruct import make_rtstruct
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments

LABELS = {"background": 0, "Leber": 1, "Knöchel": 5}
ALGORITHM = {"name": "medunet", "version": "1"}

KNOWN_COMPLAINTS = (
    "needed to build DICOMDIR",  # copied from the source as they are
    "Retired Person Name form",
)
"""Parts of dciodvfy's lines that are about what the source says, not about the result."""


def program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if found is None:
        pytest.skip(f"{name} is not installed: {package}")
    return found


def complaints(path: Path) -> list[str]:
    """Lines of dciodvfy that begin with Error or Warning, but for `KNOWN_COMPLAINTS`."""
    run = subprocess.run(
        [program("dciodvfy", "apt-get install dicom3tools"), "-new", str(path)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = (run.stdout + run.stderr).splitlines()
    assert lines, "dciodvfy says what kind of object it has read"
    return [
        line
        for line in lines
        if line.startswith(("Error", "Warning")) and not any(known in line for known in KNOWN_COMPLAINTS)
    ]


def segmentation(folder: Path, voxels: np.ndarray, path: Path) -> Path:
    pytest.importorskip("highdicom")
    planes = read_planes((record := read_header(folder)).frames, record.geometry)
    save_dataset(make_dicom_seg(voxels, as_segments(LABELS), planes, algorithm=ALGORITHM), path)
    return path


def test_dciodvfy_has_no_complaint_of_a_segmentation(tmp_path, make_series, labelled):
    assert complaints(segmentation(make_series(tmp_path / "ct"), labelled(), tmp_path / "a.dcm")) == []


def test_dciodvfy_has_no_complaint_of_a_structure_set(tmp_path, make_series, labelled):
    folder = make_series(tmp_path / "ct")
    planes = read_planes((record := read_header(folder)).frames, record.geometry)
    segments = as_segments(LABELS, codes={"Leber": {"type": ["10200004", "SCT", "Liver"]}})
    dataset = make_rtstruct(labelled(), segments, planes, algorithm=ALGORITHM)
    save_dataset(dataset, tmp_path / "a.dcm", implicit=True)
    assert complaints(tmp_path / "a.dcm") == []


def test_dcmqi_reads_the_same_voxels_at_the_same_place(tmp_path, make_series, labelled):
    folder = make_series(tmp_path / "ct")
    path = segmentation(folder, labelled(), tmp_path / "a.dcm")
    command = [program("segimage2itkimage", "pip install dcmqi"), "--inputDICOM", str(path)]
    command += ["--outputDirectory", str(tmp_path), "--outputType", "nrrd", "--mergeSegments"]
    subprocess.run(command, capture_output=True, check=True)
    image = sitk.ReadImage(str(tmp_path / "1.nrrd"))
    expected = np.select([labelled() == 1, labelled() == 5], [1, 2], 0)
    assert np.array_equal(sitk.GetArrayFromImage(image).T, expected)
    origin, spacing, direction = read_header(folder).geometry.to_lps()
    assert np.allclose(image.GetOrigin(), origin, atol=1e-3)
    assert np.allclose(image.GetSpacing(), spacing, atol=1e-4)
    assert np.allclose(image.GetDirection(), direction, atol=1e-4)
