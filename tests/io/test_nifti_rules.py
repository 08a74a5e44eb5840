"""Rules of NIfTI that need odd headers; and properties that hold for all volumes."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medunet.errors import DataError, GeometryError, MedunetError
from medunet.geometry import Geometry
from medunet.io import read_header, read_volume, write_volume

AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])


def ramp(*shape: int, dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path: Path, data: np.ndarray, *, sform=AFFINE, qform=AFFINE, kind=nib.Nifti1Image, **header) -> Path:
    """A file by nibabel; further arguments are fields of the header, patched in the bytes."""
    image = kind(data, AFFINE)
    image.set_sform(sform, code=0 if sform is None else 1)
    image.set_qform(qform, code=0 if qform is None else 1)
    nib.save(image, path)
    return patch(path, **header)


def patch(path: Path, **fields) -> Path:
    """Set fields of the header of an uncompressed file."""
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:4], "little")
    header = {348: nib.Nifti1Header, 540: nib.Nifti2Header}[size](bytes(content[:size]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:size] = header.binaryblock
    path.write_bytes(content)
    return path


def with_item(name: str, index: int, value: float) -> dict[str, np.ndarray]:
    header = nib.Nifti1Image(ramp(5, 6, 7), AFFINE).header
    field = np.array(header[name])
    field[index] = value
    return {name: field}


@pytest.mark.parametrize("qform", [AFFINE, None])
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_impossible_pixdim_is_refused_unless_the_sform_is_chosen(tmp_path, qform, value):
    path = save(tmp_path / "a.nii", ramp(5, 6, 7), qform=qform, **with_item("pixdim", 2, value))
    with pytest.raises(GeometryError, match=r"a\.nii: impossible pixdim .*pass --form sform"):
        read_volume(path)
    assert np.allclose(read_volume(path, form="sform").record.geometry.affine, AFFINE)


def test_pixdim_unlike_the_sform_is_a_warning(tmp_path):
    path = save(tmp_path / "a.nii", ramp(5, 6, 7), qform=None, **with_item("pixdim", 3, 5))
    record = read_volume(path).record
    assert np.allclose(record.geometry.affine, AFFINE)
    assert record.warnings == ("sform used; pixdim 0.8 x 0.9 x 5 differs from its spacing 0.8 x 0.9 x 2.5",)


@pytest.mark.parametrize("units", [1, 3])
def test_claim_of_other_units_than_mm_is_a_warning(tmp_path, units):
    record = read_volume(save(tmp_path / "a.nii", ramp(5, 6, 7), xyzt_units=units)).record
    assert "lengths are taken as mm" in record.warnings[0]
    assert read_volume(save(tmp_path / "b.nii", ramp(5, 6, 7), xyzt_units=2 + 8)).record.warnings == ()


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_slope_of_zero_or_nan_means_no_scaling(tmp_path, slope):
    # nifti1.h: "if scl_slope == 0, the data is not scaled"; NaN and infinite are read likewise, as nibabel does
    path = save(tmp_path / "a.nii", ramp(5, 6, 7), scl_slope=slope, scl_inter=77)
    volume = read_volume(path)
    assert np.array_equal(volume.image[0].numpy(), ramp(5, 6, 7))
    assert np.array_equal(volume.image[0].numpy(), nib.load(path).get_fdata())
    assert len(volume.record.warnings) == (slope != 0)


def test_negative_slope_turns_the_values_round(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii", ramp(5, 6, 7), scl_slope=-2, scl_inter=10))
    assert volume.image[0, 0, 0, :3].tolist() == [10, 8, 6]


def test_intercept_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(DataError, match="damaged NIfTI header"):
        read_volume(save(tmp_path / "a.nii", ramp(5, 6, 7), scl_slope=2, scl_inter=np.nan))


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_negative_determinant_keeps_every_voxel_in_its_place(tmp_path, form):
    affine = AFFINE @ np.diag([-1, 1, 1, 1.0])
    assert np.linalg.det(affine) < 0 < np.linalg.det(AFFINE)
    forms = {"sform": None, "qform": None} | {form: affine}
    volume = read_volume(save(tmp_path / "a.nii", ramp(5, 6, 7), **forms))
    assert np.allclose(volume.record.geometry.affine, affine, atol=1e-5)
    assert np.array_equal(volume.image[0].numpy(), ramp(5, 6, 7))


def test_sheared_sform_is_kept_and_contradicts_a_qform(tmp_path):
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.7
    record = read_volume(save(tmp_path / "a.nii", ramp(5, 6, 7), sform=sheared, qform=None)).record
    assert record.geometry.is_sheared
    assert np.allclose(record.geometry.affine, sheared, atol=1e-6)
    with pytest.raises(GeometryError, match="sform and qform disagree"):
        read_volume(save(tmp_path / "b.nii", ramp(5, 6, 7), sform=sheared, qform=AFFINE))


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 1, 0, 1]),
        np.diag([1.0, 1, 1e6, 1]),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.diag([1.0, np.nan, 1, 1]),
        np.diag([1.0, np.inf, 1, 1]),
    ],
    ids=["zero", "absurd", "parallel", "nan", "inf"],
)
def test_singular_affine_is_refused(tmp_path, affine):
    path = save(tmp_path / "a.nii", ramp(5, 6, 7), qform=None)
    patch(path, srow_x=affine[0], srow_y=affine[1], srow_z=affine[2])
    for read in (read_volume, read_header):
        with pytest.raises(GeometryError, match=r"a\.nii"):
            read(path)


def test_qform_that_is_no_rotation_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", ramp(5, 6, 7), sform=None, quatern_b=2)
    with pytest.raises(GeometryError, match="qform cannot be used"):
        read_volume(path)


def test_five_axes_are_channels_only_when_declared(tmp_path):
    data = ramp(5, 6, 7, 1, 3)  # as vectors are kept
    path = save(tmp_path / "a.nii", data)
    with pytest.raises(DataError, match="a fourth axis that is not declared"):
        read_volume(path)
    assert np.array_equal(read_volume(path, channels=3).image.numpy(), np.moveaxis(data[..., 0, :], -1, 0))
    with pytest.raises(DataError, match="more than four axes"):
        read_volume(save(tmp_path / "b.nii", ramp(5, 6, 7, 2, 3)), channels=6)


@pytest.mark.parametrize("code", [1, 32, 128, 1536, 1792, 2048, 2304, 0, 9999])
def test_types_without_order_or_unknown_are_refused(tmp_path, code):
    # binary, complex64, RGB24, float128, complex128, complex256, RGBA32, none, not in the standard
    path = save(tmp_path / "a.nii", ramp(5, 6, 7), datatype=code)
    with pytest.raises(DataError, match=r"a.nii: (unsupported voxel type|damaged NIfTI header)"):
        read_volume(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_big_endian_header_and_voxels_are_read(tmp_path, kind):
    header = kind.header_class(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(kind(ramp(5, 6, 7).astype(">i2"), AFFINE, header), tmp_path / "a.nii.gz")
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:2] == b"\0\0"  # the size of the header, big end first
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.image[0].numpy(), ramp(5, 6, 7))
    assert np.allclose(volume.record.geometry.affine, AFFINE)


@pytest.mark.parametrize("packed", [False, True])
def test_absurd_size_reserves_no_memory(tmp_path, packed):
    kinds = ((nib.Nifti1Image, (30000, 30000, 30000)), (nib.Nifti2Image, (1 << 40, 1 << 20, 1 << 20)))
    for kind, shape in kinds:
        path = save(tmp_path / "a.nii", ramp(5, 6, 7), kind=kind, dim=[3, *shape, 1, 1, 1, 1])
        if packed:
            path = path.with_suffix(".nii.gz")
            path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
        tracemalloc.start()
        with pytest.raises(DataError, match="shorter than its header says"):
            read_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


@pytest.mark.parametrize("dim", [[3, 0, 6, 7], [3, -5, 6, 7], [0, 5, 6, 7], [-1, 5, 6, 7], [1, 5, 6, 7]])
def test_impossible_axes_are_refused(tmp_path, dim):
    path = save(tmp_path / "a.nii", ramp(5, 6, 7), dim=[*dim, 1, 1, 1, 1])
    with pytest.raises((DataError, GeometryError), match=r"a\.nii"):
        read_volume(path)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_volume_of_one_slice_is_an_image_in_the_plane_only_when_asked(tmp_path, spatial_dims):
    path = save(tmp_path / "a.nii", ramp(5, 6, 1))
    assert read_volume(path).image.shape == (1, 5, 6, 1)
    if spatial_dims == 2:
        assert read_volume(path, spatial_dims=2).image.shape == (1, 5, 6)
        with pytest.raises(GeometryError, match="volume where an image in the plane is needed"):
            read_volume(save(tmp_path / "b.nii", ramp(5, 6, 2)), spatial_dims=2)
    else:
        with pytest.raises(GeometryError, match="single slice where a volume is needed"):
            read_volume(path, spatial_dims=3)


@pytest.mark.parametrize("angle", [0.0, 0.02, 0.05, 0.1, 0.5])
def test_scan_turned_by_nearly_half_a_turn_is_not_refused_for_the_rounding_of_its_quaternion(tmp_path, angle):
    """LPS and RAS are half a turn apart, so an axial scan, slightly oblique, lies here; nibabel writes both forms."""
    turn = np.deg2rad(180 - angle)  # degrees
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) * [
        0.4,
        0.4,
        0.6,
    ]
    affine[:3, 3] = [100, 120, -300]
    image = nib.Nifti1Image(np.zeros((1000, 1000, 3), np.uint8), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").record.geometry.affine, affine, atol=1e-4)
    image.set_qform(affine @ np.diag([1, 1, 1.2, 1]), 1)
    nib.save(image, tmp_path / "b.nii.gz")
    with pytest.raises(GeometryError, match="sform and qform disagree"):
        read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("angle", np.linspace(179, 181, 41).tolist())
def test_what_we_write_we_read_at_any_turn(tmp_path, angle):
    turn = np.deg2rad(angle)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= [0.3, 50, 0.02]  # mm
    path = write_volume(np.zeros((200, 9, 3), np.uint8), tmp_path / "a.nii", affine=affine)
    np.testing.assert_allclose(read_volume(path).record.geometry.affine, affine, atol=1e-5)
    qform = nib.load(path).get_qform(coded=True)[0]
    assert qform is None or np.abs((qform - affine) @ [199, 8, 2, 1]).max() < 0.05 * 0.02


HEALTHY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def affines(draw):
    """Rotation, spacing, mirrored axes, shear and shift."""
    angles = [draw(st.floats(-np.pi, np.pi)) for _ in range(3)]
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    spacing = [draw(st.floats(0.01, 50)) * draw(st.sampled_from([1, -1])) for _ in range(3)]
    shear = np.eye(3)
    shear[1, 2] = draw(st.sampled_from([0.0, 0.0, 0.3]))
    affine = np.eye(4)
    affine[:3, :3] = matrix @ shear * spacing
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


def exact_values(dtype: str) -> dict[str, float]:
    """Values that float32 keeps exactly or rounds once: reading gives float32."""
    if dtype.startswith("float"):
        return {"min_value": -1e6, "max_value": 1e6, "allow_nan": False}
    limits = np.iinfo(dtype)
    return {"min_value": max(-(2**24), limits.min), "max_value": min(2**24, limits.max)}


@HEALTHY
@given(
    voxels=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9), elements=exact_values(dtype)
        )
    ),
    affine=affines(),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_reading_gives_back_what_was_written(tmp_path, voxels, affine, suffix):
    path = write_volume(voxels, tmp_path / f"a{suffix}", affine=affine)
    volume = read_volume(path)
    assert volume.record.dtype == str(voxels.dtype)
    assert np.array_equal(volume.image[0].numpy(), voxels.astype(np.float32))
    assert volume.record.geometry.is_close(Geometry(affine, voxels.shape), tolerance_voxels=1e-2)
    assert read_header(path).geometry.is_close(volume.record.geometry, tolerance_voxels=0)


@HEALTHY
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_header_is_read_or_refused_by_a_typed_error(tmp_path, changes):
    path = save(tmp_path / "a.nii", ramp(3, 4, 5))
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content)
    try:
        volume = read_volume(path)
    except MedunetError as error:
        assert "a.nii" in str(error)
    else:
        assert np.isfinite(volume.image.numpy()).all()


@HEALTHY
@given(data=st.data())
def test_damaged_gzip_is_never_taken_for_another_volume(tmp_path, data):
    path = write_volume(ramp(9, 8, 7), tmp_path / "a.nii.gz", affine=AFFINE)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(10, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        volume = read_volume(path)
    except MedunetError as error:
        assert "a.nii.gz" in str(error)
    else:
        assert np.array_equal(volume.image[0].numpy(), ramp(9, 8, 7))
