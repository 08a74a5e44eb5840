from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medunet.errors import ConfigError, DataError, GeometryError
from medunet.io import read_header, read_volume, write_volume

AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])


def ramp(*shape: int, dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A healthy volume of odd size."""
    return write_volume(ramp(33, 34, 35), tmp_path / "case.nii.gz", affine=AFFINE)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = AFFINE, kind=nib.Nifti1Image, **header) -> Path:
    image = kind(data, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patch(path: Path, offset: int, data: bytes) -> Path:
    """Overwrite bytes of an uncompressed file."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int32", ">f4", "float64"])
def test_voxels_and_affine_equal_nibabels(tmp_path, suffix, kind, dtype):
    path = save(tmp_path / f"a{suffix}", ramp(5, 7, 9, dtype=dtype), kind=kind)
    volume = read_volume(path)
    expected = nib.load(path)
    assert volume.image.shape == (1, 5, 7, 9)
    assert volume.image.is_contiguous()
    assert np.array_equal(volume.image[0].numpy(), expected.get_fdata(dtype=np.float32))
    assert np.allclose(volume.image.affine.numpy(), expected.affine)


def test_slope_and_intercept_are_applied_as_nibabel_does(tmp_path):
    data = ramp(5, 6, 7)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_slope_inter(0.1, -1024)
    path = tmp_path / "scaled.nii"
    nib.save(image, path)
    assert np.array_equal(read_volume(path).image[0].numpy(), nib.load(path).get_fdata(dtype=np.float32))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    voxels=hnp.arrays(
        st.sampled_from(["uint8", "int16", "uint16", "float32"]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
        elements={"allow_nan": False, "allow_infinity": False} | {"min_value": 0, "max_value": 200},
    ),
    shift=st.floats(-1e3, 1e3),
    suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]),
)
def test_reading_gives_what_was_written(tmp_path, voxels, shift, suffix):
    affine = AFFINE.copy()
    affine[0, 3] += shift
    if suffix in (".nrrd", ".mha") and voxels.ndim == 2:
        affine[2, 2], affine[2, 3] = 1, 0  # two axes keep nothing of the third
    volume = read_volume(write_volume(voxels, tmp_path / f"a{suffix}", affine=affine))
    assert np.array_equal(volume.image[0].numpy(), voxels)
    assert np.allclose(volume.record.geometry.affine, affine, atol=1e-4)


def test_affine_with_shear_survives_a_round_trip(tmp_path):
    affine = AFFINE.copy()
    affine[1, 2] = 0.7
    volume = read_volume(write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz", affine=affine))
    assert np.allclose(volume.record.geometry.affine, affine, atol=1e-6)


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    path = save(tmp_path / "a.nii.gz", ramp(5, 6, 7, 1))
    assert read_volume(path).image.shape == (1, 5, 6, 7)


def test_declared_fourth_axis_becomes_channels(tmp_path):
    data = ramp(5, 6, 7, 4)
    path = save(tmp_path / "brats.nii.gz", data)
    with pytest.raises(DataError, match=r"brats.nii.gz: volume has a fourth axis"):
        read_volume(path)
    with pytest.raises(DataError, match=r"wrong number of channels \(received 4, expected 2\)"):
        read_volume(path, channels=2)
    volume = read_volume(path, channels=4)
    assert volume.image.shape == (4, 5, 6, 7)
    assert np.array_equal(volume.image[2].numpy(), data[..., 2])
    assert read_header(path, channels=4).channels == 4


def test_truncated_gzip_is_refused(file):
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(DataError, match=r"case.nii.gz: truncated gzip"):
        read_volume(file)


def test_missing_checksum_alone_is_refused(file):
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match="truncated gzip"):
        read_volume(file)


def test_wrong_checksum_is_refused(file):
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # the last eight bytes are CRC and length
    file.write_bytes(content)
    with pytest.raises(DataError, match="damaged gzip file"):
        read_volume(file)


def test_wrong_checksum_behind_trailing_bytes_is_refused(tmp_path):
    plain = write_volume(ramp(5, 6, 7), tmp_path / "a.nii").read_bytes()
    content = bytearray(gzip.compress(plain + bytes(5_000_000)))
    path = tmp_path / "b.nii.gz"
    path.write_bytes(content)
    assert read_volume(path).image.shape == (1, 5, 6, 7)
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged gzip file"):
        read_volume(path)


def test_several_gzip_members_are_one_file(tmp_path):
    plain = write_volume(ramp(5, 6, 7), tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]))
    assert np.array_equal(read_volume(path).image[0].numpy(), ramp(5, 6, 7))


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("empty.nii.gz", b"", "file has zero bytes"),
        ("text.nii.gz", b"no gzip at all", "not a gzip file"),
        ("text.nii", b"x" * 1000, "not a NIfTI file"),
        ("short.nii", b"\x5c\x01\x00\x00", "not a NIfTI file"),
        ("zip.nii.gz", gzip.compress(b"not an image", mtime=0), "not a NIfTI file"),
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path, name, content, cause):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {cause}"):
        read_volume(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.nii.gz: does not exist"):
        read_volume(tmp_path / "none.nii.gz")


def test_file_shorter_than_its_header_says_is_refused(tmp_path):
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"shorter than its header says \(received 771 bytes, expected 772 bytes\)"):
        read_volume(path)


def test_absurd_size_is_refused_before_anything_is_allocated(tmp_path):
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii")
    patch(path, 42, np.array([30000, 30000, 30000], "<i2").tobytes())  # dim[1..3]: 54 TB
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        with pytest.raises(DataError, match="shorter than its header says"):
            read_volume(file)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused_or_filled(tmp_path, value):
    data = ramp(5, 6, 7, dtype="float32")
    data[1, 2, 3] = value
    path = save(tmp_path / "a.nii", data)
    with pytest.raises(DataError, match="NaN or infinite \\(received 1 of 210\\)"):
        read_volume(path)
    filled = read_volume(path, fill_value=-7).image[0]
    assert filled[1, 2, 3] == -7
    assert filled[1, 2, 4] == data[1, 2, 4]


def test_value_that_overflows_float32_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", np.full((3, 3, 3), 1e300))
    with pytest.raises(DataError, match="infinite"):
        read_volume(path)


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_voxels_without_order_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.nii", np.zeros((3, 3, 3), dtype))
    with pytest.raises(DataError, match="unsupported voxel type"):
        read_volume(path)


def two_forms(path: Path, sform: np.ndarray | None, qform: np.ndarray | None) -> Path:
    image = nib.Nifti1Image(ramp(5, 6, 7), AFFINE)
    image.set_sform(sform, code=0 if sform is None else 1)
    image.set_qform(qform, code=0 if qform is None else 1)
    nib.save(image, path)
    return path


def test_disagreeing_forms_are_refused_unless_one_is_chosen(tmp_path):
    other = np.diag([2.0, 2, 2, 1])
    path = two_forms(tmp_path / "a.nii", AFFINE, other)
    with pytest.raises(GeometryError, match=r"a.nii: sform and qform disagree"):
        read_volume(path)
    assert np.allclose(read_volume(path, form="sform").record.geometry.affine, AFFINE)
    assert np.allclose(read_volume(path, form="qform").record.geometry.affine, other)


def test_one_form_is_enough(tmp_path):
    assert np.allclose(read_header(two_forms(tmp_path / "s.nii", AFFINE, None)).geometry.affine, AFFINE)
    assert np.allclose(read_header(two_forms(tmp_path / "q.nii", None, AFFINE)).geometry.affine, AFFINE, atol=1e-5)


def test_no_form_is_refused_unless_the_spacing_is_enough(tmp_path):
    path = two_forms(tmp_path / "a.nii", None, None)
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        read_volume(path)
    record = read_volume(path, form="pixdim").record
    assert np.allclose(record.geometry.spacing_mm, (0.8, 0.9, 2.5))
    assert record.warnings


def test_unknown_form_is_a_config_error(file):
    with pytest.raises(ConfigError, match="unknown form"):
        read_volume(file, form="guess")


@pytest.mark.parametrize(("index", "value", "cause"), [(0, np.nan, "not finite"), (0, 0.0, "spacing")])
def test_singular_or_infinite_sform_is_refused(tmp_path, index, value, cause):
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii", affine=np.eye(4))
    patch(path, 280 + 4 * index, np.array([value], "<f4").tobytes())  # srow_x[0]
    with pytest.raises(GeometryError, match=f"a.nii: .*{cause}"):
        read_volume(path)


def test_spacing_of_zero_is_refused(tmp_path):
    path = two_forms(tmp_path / "a.nii", None, AFFINE)
    patch(path, 84, np.array([0], "<f4").tobytes())  # pixdim[2]
    with pytest.raises(GeometryError, match="impossible pixdim"):
        read_volume(path)


def test_header_alone_gives_the_same_record(file):
    assert read_header(file).geometry.is_close(read_volume(file).record.geometry)
    assert read_header(file).dtype == "int16"


@pytest.mark.data
def test_real_volumes_equal_nibabels(test_data):
    files = [test_data / "CT_Spleen_cropped" / "ct.nii.gz", test_data / "STS_GTV_CT" / "imagesTr" / "STS_002.nii.gz"]
    for file in files:
        volume, expected = read_volume(file), nib.load(file)
        assert np.array_equal(volume.image[0].numpy(), expected.get_fdata(dtype=np.float32))
        assert np.allclose(volume.record.geometry.affine, expected.affine)
