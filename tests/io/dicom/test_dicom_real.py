"""Real series have the voxels and positions that pydicom reads, and synthetic ones those of dcm2niix."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medunet.errors import DataError, GeometryError
from medunet.io import read_header, read_volume

REGULAR = [
    "ct_abdomen_crlm/image",
    "rtstruct_STS_002/CT/dicom/image",
    "rtstruct_STS_002/PET/dicom/image",
    "rtstruct_STS_002/MR_T1/dicom/image",
    "seg_ct_3slice/ct-3slice",
    "seg_ct_3slice/24x38x3/image",
    "seg_ct_3slice/23x38x3/image",
]


@pytest.mark.data
@pytest.mark.parametrize("path", REGULAR)
def test_real_series_has_the_voxels_and_positions_of_its_slices(test_data, path):
    folder = test_data / "dicom" / path
    slices = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    rescaled = [
        d.pixel_array.T * np.float64(d.get("RescaleSlope", 1)) + np.float64(d.get("RescaleIntercept", 0))
        for d in slices
    ]
    expected, warnings = np.stack(rescaled, axis=-1).astype(np.float32), ()
    if "PixelPaddingValue" in slices[0]:
        value = slices[0].PixelPaddingValue * float(slices[0].RescaleSlope) + float(slices[0].RescaleIntercept)
        padding = expected == value
        if padding.any():  # it is clamped
            expected[padding] = lowest = expected[~padding].min()
            warnings = (f"{padding.sum()} padding voxels ({value:g}) clamped to {lowest:g}",)
    volume = read_volume(folder)
    assert np.array_equal(volume.image[0].numpy(), expected)
    assert volume.record.warnings == warnings
    geometry = volume.record.geometry
    for k, header in enumerate(slices):
        row_mm, column_mm = map(float, header.PixelSpacing)
        along_row, along_column = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
        for index, place in ((0, 0), 0), ((3, 2), 3 * column_mm * along_row + 2 * row_mm * along_column):
            lps = np.array(header.ImagePositionPatient, dtype=float) + place
            assert np.allclose((geometry.affine @ (*index, k, 1))[:3], lps * [-1, -1, 1], atol=0.05)
    assert read_header(folder).geometry.is_close(geometry, tolerance_voxels=0)


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
    with pytest.raises(error, match=cause):
        read_volume(test_data / "dicom" / path)


@pytest.mark.data
def test_real_gantry_tilt_is_kept_or_resampled(test_data):
    folder = test_data / "dicom" / "ct_gantry_tilt_philips" / "S2010"
    record = read_header(folder)
    tilt = "gantry tilt of 18.5 degrees kept as shear in the affine"
    assert record.warnings == ("1 files without an image ignored", tilt)
    header = pydicom.dcmread(sorted(folder.iterdir())[5], stop_before_pixels=True)
    index = np.linalg.solve(record.geometry.affine, [*(np.array(header.ImagePositionPatient) * [-1, -1, 1]), 1])
    assert np.allclose(index[:2], 0, atol=0.05)  # every slice begins at column and row 0 of the volume
    assert abs(index[2] - round(index[2])) < 0.02
    upright = read_header(folder, tilt="resample").geometry
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


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed (scripts/other_programs.sh)")
@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1], [0.8, 0.6, 0, 0, 0, -1], [-1, 0, 0, 0, 1, 0]],
    ids=["axial", "sagittal", "coronal", "oblique", "reversed"],
)
def test_synthetic_series_equals_dcm2niix(tmp_path, made, orientation):
    cosines = np.array(orientation, dtype=float).reshape(2, 3)
    positions = np.array([10, 20, 30]) + np.outer(np.arange(5), 2.5 * np.cross(*cosines))
    tags = {"PhotometricInterpretation": "MONOCHROME1", "Manufacturer": "SIEMENS"}
    folder = made.series(tmp_path / "ct", positions, ImageOrientationPatient=orientation, **tags)
    subprocess.run(["dcm2niix", "-f", "out", "-o", tmp_path, folder], check=True, capture_output=True)
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "out.nii"))
    image = read_volume(folder).image
    ours = nib.as_closest_canonical(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()))
    assert np.allclose(ours.affine, theirs.affine, atol=1e-3)
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
