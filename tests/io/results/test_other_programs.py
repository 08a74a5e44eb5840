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

# Parts of dciodvfy's lines that concern what is copied from the source.
KNOWN_COMPLAINTS = ("needed to build DICOMDIR", "Retired Person Name form")


def run(name: str, package: str, *arguments: object) -> str:
    """Run a program, or skip the test if it is not installed; return what it prints."""
    path = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if path is None:
        pytest.skip(f"{name} is not installed: {package}")
    command = [path, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return result.stdout + result.stderr


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_dciodvfy_accepts_dicom_results(tmp_path, make_series, labelled, written, kind):
    codes = {"Leber": {"type": ["10200004", "SCT", "Liver"]}}
    path = written(kind, make_series(tmp_path / "ct"), labelled(), tmp_path / "a.dcm", codes=codes)
    lines = run("dciodvfy", "apt-get install dicom3tools", "-new", path).splitlines()
    assert lines, "dciodvfy names the kind of object"
    complaints = [line for line in lines if line.startswith(("Error", "Warning"))]
    assert [line for line in complaints if not any(known in line for known in KNOWN_COMPLAINTS)] == []


def test_dcmqi_reads_the_same_voxels_at_the_same_position(tmp_path, make_series, labelled, written):
    folder = make_series(tmp_path / "ct")
    path = written("seg", folder, labelled(), tmp_path / "a.dcm")
    options = ["--outputDirectory", tmp_path, "--outputType", "nrrd", "--mergeSegments"]
    run("segimage2itkimage", "pip install dcmqi", "--inputDICOM", path, *options)
    image = sitk.ReadImage(str(tmp_path / "1.nrrd"))
    expected = np.select([labelled() == 1, labelled() == 5], [1, 2], 0)
    assert np.array_equal(sitk.GetArrayFromImage(image).T, expected)
    origin, spacing, direction = read_header(folder).geometry.to_lps()
    assert np.allclose(image.GetOrigin(), origin, atol=1e-3)
    assert np.allclose(image.GetSpacing(), spacing, atol=1e-4)
    assert np.allclose(image.GetDirection(), direction, atol=1e-4)
