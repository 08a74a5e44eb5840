"""Results are read and validated by dcmqi and dicom3tools, if they are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medunet.io import read_header

KNOWN_COMPLAINTS = (
    "needed to build DICOMDIR",  # copied from the source as they are
    "Retired Person Name form",
)
"""Parts of dciodvfy's lines that concern the source, not the result."""


def program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if found is None:
        pytest.skip(f"{name} is not installed: {package}")
    return found


def complaints(path: Path) -> list[str]:
    """Lines of dciodvfy that begin with Error or Warning, except `KNOWN_COMPLAINTS`."""
    run = subprocess.run(
        [program("dciodvfy", "apt-get install dicom3tools"), "-new", str(path)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = (run.stdout + run.stderr).splitlines()
    assert lines, "dciodvfy names the kind of object"
    return [
        line
        for line in lines
        if line.startswith(("Error", "Warning")) and not any(known in line for known in KNOWN_COMPLAINTS)
    ]


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_dciodvfy_accepts_dicom_results(tmp_path, make_series, labelled, written, kind):
    codes = {"Leber": {"type": ["10200004", "SCT", "Liver"]}}
    assert complaints(written(kind, make_series(tmp_path / "ct"), labelled(), tmp_path / "a.dcm", codes=codes)) == []


def test_dcmqi_reads_the_same_voxels_at_the_same_position(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    path = written("seg", folder, labelled(), tmp_path / "a.dcm")
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
