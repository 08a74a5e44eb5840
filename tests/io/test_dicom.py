from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medunet.errors import DataError, GeometryError
from medunet.io import read_header, read_volume
from medunet.io.dicom import is_dicom_folder


def write_series(folder: Path, positions: np.ndarray, *, series: str | None = None, prefix: str = "s", **tags) -> Path:
    """CT slices of 5 x 7 pixels at given positions (LPS mm), in file names against the order of the positions."""
    folder.mkdir(exist_ok=True)
    series = series or generate_uid()
    for number, position in enumerate(positions):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{prefix}{len(positions) - number:02d}"
        header = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        header.SeriesInstanceUID, header.Modality = series, "CT"
        header.Rows, header.Columns, header.PixelSpacing = 5, 7, [0.5, 0.7]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [float(p) for p in position]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 1
        header.RescaleSlope, header.RescaleIntercept = 1, -1000
        header.PixelData = (np.arange(35, dtype="<i2") + 100 * number).tobytes()
        for tag, value in tags.items():
            setattr(header, tag, value)
        header.save_as(path, enforce_file_format=True)
    return folder


def regular(n: int = 4, dz: float = 2.5) -> np.ndarray:
    return np.array([(10, 20, 30 + dz * k) for k in range(n)])


def test_plain_series_is_a_volume_in_ras(tmp_path):
    folder = write_series(tmp_path / "ct", regular())
    (folder / "notes.txt").write_text("junk")
    volume = read_volume(folder)
    assert volume.image.shape == (1, 7, 5, 4)  # columns, rows, slices
    assert volume.image[0, 2, 1, 3] == 100 * 3 + 1 * 7 + 2 - 1000
    assert np.allclose(
        volume.record.geometry.affine, [[-0.7, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    )
    assert volume.record.warnings == ("1 files without an image ignored",)
    assert is_dicom_folder(folder)


def test_missing_slice_is_refused(tmp_path):
    folder = write_series(tmp_path / "ct", np.delete(regular(6), 2, axis=0))
    with pytest.raises(GeometryError, match=r"ct: slice distances are uneven: a slice may be missing"):
        read_volume(folder)


def test_gantry_tilt_is_refused(tmp_path):
    positions = regular()
    positions[:, 1] += 0.5 * np.arange(4)
    with pytest.raises(GeometryError, match="gantry tilt"):
        read_volume(write_series(tmp_path / "ct", positions))


def test_duplicate_position_is_refused(tmp_path):
    with pytest.raises(GeometryError, match="same position"):
        read_volume(write_series(tmp_path / "ct", regular()[[0, 1, 1, 2]]))


def test_two_series_are_listed_and_one_can_be_chosen(tmp_path):
    write_series(tmp_path / "ct", regular(4), series="1.2.3", prefix="a")
    folder = write_series(tmp_path / "ct", regular(3), series="1.2.4", prefix="b")
    with pytest.raises(DataError, match=r"several series .*1\.2\.3 \(4 images\), 1\.2\.4 \(3 images\)"):
        read_volume(folder)
    assert read_volume(folder, series_uid="1.2.4").image.shape == (1, 7, 5, 3)
    with pytest.raises(DataError, match="does not hold this series"):
        read_volume(folder, series_uid="1.2.5")


def test_localizer_is_dropped_and_recorded(tmp_path):
    write_series(tmp_path / "ct", regular(1), prefix="a", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    folder = write_series(tmp_path / "ct", regular(4), prefix="b")
    assert read_volume(folder).record.warnings == ("1 localizers dropped",)


@pytest.mark.parametrize(
    ("tags", "error", "cause"),
    [
        ({"PixelSpacing": [0, 0.5]}, GeometryError, "impossible voxel spacing"),
        ({"PixelSpacing": None}, GeometryError, "no usable PixelSpacing"),
        ({"ImagePositionPatient": None}, GeometryError, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, GeometryError, "not orthonormal"),
        ({"RescaleSlope": 0}, DataError, "impossible RescaleSlope"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, DataError, "not a plain grey image"),
        ({"NumberOfFrames": 2}, DataError, "multi-frame"),
    ],
)
def test_unusable_headers_are_refused(tmp_path, tags, error, cause):
    with pytest.raises(error, match=cause):
        read_volume(write_series(tmp_path / "ct", regular(), **tags))


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"Rows": 7, "Columns": 5}, "different sizes"),
        ({"PixelSpacing": [0.5, 0.71]}, "different PixelSpacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "different orientations"),
    ],
)
def test_mixed_slices_are_refused(tmp_path, tags, cause):
    write_series(tmp_path / "ct", regular(2), series="1.2.3", prefix="a")
    folder = write_series(tmp_path / "ct", regular(5)[2:], series="1.2.3", prefix="b", **tags)
    with pytest.raises(GeometryError, match=cause):
        read_volume(folder)


def test_truncated_pixel_data_is_refused(tmp_path):
    folder = write_series(tmp_path / "ct", regular())
    file = folder / "s02"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="s02: truncated pixel data"):
        read_volume(folder)


def test_single_slice_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(GeometryError, match="single slice"):
        read_volume(write_series(tmp_path / "ct", regular(1)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: folder holds no DICOM image"):
        read_volume(tmp_path / "empty")


def pydicom_voxels(folder: Path) -> np.ndarray:
    slices = sorted((pydicom.dcmread(f) for f in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    planes = [d.pixel_array.T * np.float64(d.RescaleSlope) + np.float64(d.RescaleIntercept) for d in slices]
    return np.stack(planes, axis=-1).astype(np.float32)


@pytest.mark.data
@pytest.mark.parametrize("path", ["ct_abdomen_crlm/image", "rtstruct_STS_002/PET/dicom/image"])
def test_real_series_equals_pydicom_with_the_slope_of_each_slice(test_data, path):
    folder = test_data / "dicom" / path
    volume = read_volume(folder)
    assert np.allclose(volume.image[0].numpy(), pydicom_voxels(folder), rtol=1e-6)
    assert read_header(folder).geometry.is_close(volume.record.geometry)


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "error", "cause"),
    [
        ("ct_gantry_tilt_philips/S2010", GeometryError, r"gantry tilt.*18\.5 degrees"),
        ("ct_mixed_size_secondary_capture/S4010", DataError, "not a plain grey image"),
        ("mr_uneven_dz", GeometryError, "uneven"),
    ],
)
def test_real_series_without_a_regular_grid_are_refused(test_data, path, error, cause):
    with pytest.raises(error, match=cause):
        read_volume(test_data / "dicom" / path)
