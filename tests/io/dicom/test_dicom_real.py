"""Real series equal the readings of pydicom and dcm2niix."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medunet.errors import DataError, GeometryError
from medunet.io import read_header, read_volume

AFFINE_TOLERANCE_MM = 1e-3
CONVERTER = shutil.which("dcm2niix")

REGULAR = [
    "ct_abdomen_crlm/image",
    "rtstruct_STS_002/CT/dicom/image",
    "rtstruct_STS_002/PET/dicom/image",
    "rtstruct_STS_002/MR_T1/dicom/image",
    "seg_ct_3slice/ct-3slice",
    "seg_ct_3slice/24x38x3/image",
    "seg_ct_3slice/23x38x3/image",
]


def pydicom_voxels(folder: Path) -> np.ndarray:
    slices = sorted((pydicom.dcmread(f) for f in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    planes = [
        d.pixel_array.T * np.float64(d.get("RescaleSlope", 1)) + np.float64(d.get("RescaleIntercept", 0))
        for d in slices
    ]
    return np.stack(planes, axis=-1).astype(np.float32)


def padding_of(folder: Path) -> float | None:
    """Return the value of padding voxels before they are clamped."""
    header = pydicom.dcmread(next(f for f in sorted(folder.iterdir())), stop_before_pixels=True)
    padding = header.get("PixelPaddingValue")
    return None if padding is None else padding * float(header.RescaleSlope) + float(header.RescaleIntercept)


@pytest.mark.data
@pytest.mark.parametrize("path", REGULAR)
def test_real_series_equals_pydicom_with_the_slope_of_each_slice(test_data, path):
    folder = test_data / "dicom" / path
    volume, expected = read_volume(folder), pydicom_voxels(folder)
    padding = padding_of(folder)
    if padding is not None and (expected == padding).any():
        expected[expected == padding] = expected[expected != padding].min()
    assert np.array_equal(volume.image[0].numpy(), expected)
    assert read_header(folder).geometry.is_close(volume.record.geometry, tolerance_voxels=0)


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "error", "cause"),
    [
        ("ct_mixed_size_secondary_capture/S4010", DataError, "not a grey image"),
        ("mr_uneven_dz", GeometryError, "uneven"),
        ("seg_ct_3slice/liver.dcm", DataError, "no DICOM image"),
        ("rtstruct_STS_002/CT/dicom/mask", DataError, "no DICOM image"),
    ],
)
def test_real_series_that_are_not_a_volume_are_rejected(test_data, path, error, cause):
    for read in (read_volume, read_header):
        with pytest.raises(error, match=cause):
            read(test_data / "dicom" / path)


@pytest.mark.data
def test_real_padding_is_clamped_and_recorded(test_data):
    volume = read_volume(test_data / "dicom" / "ct_abdomen_crlm" / "image")
    assert volume.image.min() == -1024
    assert volume.record.warnings == ("2286652 padding voxels (-3024) clamped to -1024",)


@pytest.mark.data
def test_real_gantry_tilt_is_kept_or_resampled(test_data):
    folder = test_data / "dicom" / "ct_gantry_tilt_philips" / "S2010"
    kept = read_volume(folder)
    assert kept.record.warnings == (
        "1 files without an image ignored",
        "gantry tilt of 18.5 degrees kept as shear in the affine",
    )
    header = pydicom.dcmread(sorted(folder.iterdir())[5], stop_before_pixels=True)
    index = np.linalg.solve(kept.record.geometry.affine, [*(np.array(header.ImagePositionPatient) * [-1, -1, 1]), 1])
    assert np.allclose(index[:2], 0, atol=0.05)  # every slice begins at column and row 0 of the volume
    assert abs(index[2] - round(index[2])) < 0.02
    upright = read_volume(folder, tilt="resample").record.geometry
    assert not upright.is_sheared
    assert upright.shape == (512, 600, 54)


@pytest.mark.data
def test_real_uneven_series_is_resampled_on_request(test_data):
    record = read_volume(test_data / "dicom" / "mr_uneven_dz", uneven="resample").record
    assert record.geometry.shape == (256, 256, 20)
    assert record.warnings == ("slices at uneven distances (6.958 to 7.071 mm) resampled to 7.001 mm",)


@pytest.mark.data
@pytest.mark.parametrize("size", ["24x38x3", "23x38x3"])
def test_real_multi_frame_file_equals_its_single_slices(test_data, size):
    folder = test_data / "dicom" / "seg_ct_3slice" / size
    multi, single = read_volume(folder / "multiframe" / "mf.dcm"), read_volume(folder / "image")
    assert np.array_equal(multi.image.numpy(), single.image.numpy())
    assert multi.record.geometry.is_close(single.record.geometry, tolerance_voxels=1e-4)


def converted(source: Path, target: Path) -> tuple[nib.Nifti1Image | None, list[str]]:
    """Return dcm2niix's volume and its warnings."""
    target.mkdir()
    command = [str(CONVERTER), "-b", "n", "-z", "n", "-m", "y", "-f", "v", "-o", str(target), str(source)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    warnings = re.findall(r"(?:Warning|Error|Unable).*", output.stdout + output.stderr)
    files = sorted(target.glob("*.nii"))
    return (nib.load(files[0]) if len(files) == 1 else None), warnings


def assert_equals_dcm2niix(source: Path, target: Path) -> None:
    expected, warnings = converted(source, target)
    if warnings or expected is None:
        pytest.skip(f"dcm2niix does not convert it without a warning: {warnings}")
    # dcm2niix stores one slope for all slices: values are rounded by up to half of it
    rounding = 0.51 * float(expected.dataobj.slope) if expected.dataobj.slope != 1 else 0
    expected = nib.as_closest_canonical(expected)
    volume = read_volume(source)
    ours = nib.as_closest_canonical(nib.Nifti1Image(volume.image[0].numpy(), volume.record.geometry.affine))
    assert np.allclose(ours.affine, expected.affine, atol=AFFINE_TOLERANCE_MM)
    voxels = expected.get_fdata(dtype=np.float32)
    padding = padding_of(source) if source.is_dir() else None
    if padding is not None and (voxels == padding).any():  # dcm2niix keeps it, we clamp it
        voxels[voxels == padding] = voxels[voxels != padding].min()
    assert ours.shape == voxels.shape
    assert np.abs(ours.get_fdata(dtype=np.float32) - voxels).max() <= rounding + 1e-6 * np.abs(voxels).max()


@pytest.mark.data
@pytest.mark.skipif(CONVERTER is None, reason="Debian's dcm2niix is not installed")
@pytest.mark.parametrize("path", [*REGULAR, "seg_ct_3slice/24x38x3/multiframe/mf.dcm"])
def test_real_series_equals_dcm2niix(test_data, tmp_path, path):
    assert_equals_dcm2niix(test_data / "dicom" / path, tmp_path / "out")


@pytest.mark.skipif(CONVERTER is None, reason="Debian's dcm2niix is not installed")
@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1], [0.8, 0.6, 0, 0, 0, -1], [-1, 0, 0, 0, 1, 0]],
    ids=["axial", "sagittal", "coronal", "oblique", "reversed"],
)
def test_synthetic_series_equals_dcm2niix(tmp_path, made, orientation):
    cosines = np.array(orientation, dtype=float).reshape(2, 3)
    positions = np.array([10, 20, 30]) + np.outer(np.arange(5), 2.5 * np.cross(*cosines))
    folder = made.series(tmp_path / "ct", positions, ImageOrientationPatient=orientation, Manufacturer="SIEMENS")
    assert_equals_dcm2niix(folder, tmp_path / "out")


@pytest.mark.skipif(CONVERTER is None, reason="Debian's dcm2niix is not installed")
def test_monochrome1_of_a_measurement_equals_dcm2niix(tmp_path, made):
    tags = {"PhotometricInterpretation": "MONOCHROME1", "Manufacturer": "SIEMENS"}
    assert_equals_dcm2niix(made.series(tmp_path / "ct", made.positions(), **tags), tmp_path / "out")
