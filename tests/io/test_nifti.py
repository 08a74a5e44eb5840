"""NIfTI, Analyze and MGH: voxels and placement equal nibabel's, and unusual headers follow a rule or are rejected."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medunet.errors import ConfigError, DataError, GeometryError
from medunet.geometry import Geometry
from medunet.io import read_header, read_volume, write_volume

AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])


def ramp(*shape: int, dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


VOXELS = ramp(5, 6, 7)


def save(
    path: Path,
    data: np.ndarray = VOXELS,
    *,
    sform: np.ndarray | None = AFFINE,
    qform: np.ndarray | None = AFFINE,
    kind: Any = nib.Nifti1Image,
    **fields: Any,
) -> Path:
    """Write a file by nibabel; `fields` of the header are patched in the bytes, without nibabel's checks."""
    image = kind(data, AFFINE)
    image.set_sform(sform, code=0 if sform is None else 1)
    image.set_qform(qform, code=0 if qform is None else 1)
    nib.save(image, path)
    if fields:
        content = bytearray(path.read_bytes())
        size = int.from_bytes(content[:4], "little")
        header = {348: nib.Nifti1Header, 540: nib.Nifti2Header}[size](bytes(content[:size]), check=False)
        for name, value in fields.items():
            header[name] = value
        content[:size] = header.binaryblock
        path.write_bytes(content)
    return path


def pixdim(index: int, value: float) -> dict[str, np.ndarray]:
    field = np.array(nib.Nifti1Image(VOXELS, AFFINE).header["pixdim"])
    field[index] = value
    return {"pixdim": field}


def placement(path: Path, **options: Any) -> np.ndarray:
    return read_header(path, **options).geometry.affine


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int32", ">f4", "float64"])
def test_voxels_and_affine_equal_nibabels(tmp_path: Path, kind: Any, dtype: str) -> None:
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    path = tmp_path / "a.nii"
    nib.save(kind(ramp(5, 7, 9, dtype=dtype), AFFINE, header), path)
    volume, expected = read_volume(path), nib.load(path)
    assert volume.image.shape == (1, 5, 7, 9)
    assert volume.image.is_contiguous()
    assert np.array_equal(volume.image[0].numpy(), expected.get_fdata(dtype=np.float32))
    assert np.allclose(volume.image.affine.numpy(), expected.affine)
    assert read_header(path).geometry.is_close(volume.record.geometry, tolerance_voxels=0)


def test_reading_returns_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, dtype in enumerate(["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"] * 5):
        shape = tuple(rng.integers(1, 9, 2 + number % 2))
        voxels, affine = rng.integers(0, 100, shape).astype(dtype), np.eye(4)
        turn, spacing, shear = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.uniform(0.01, 50, 3), np.eye(3)
        shear[1, 2] = 0.3 * (number % 3 == 0)
        affine[:3, :3] = turn @ shear * spacing * rng.choice([-1, 1], 3)
        affine[:3, 3] = rng.uniform(-500, 500, 3)
        volume = read_volume(write_volume(voxels, tmp_path / f"a{['.nii', '.nii.gz'][number % 2]}", affine=affine))
        assert volume.record.dtype == dtype
        assert np.array_equal(volume.image[0].numpy(), voxels)
        assert volume.record.geometry.is_close(Geometry(affine, shape), tolerance_voxels=1e-2)


def test_a_written_affine_near_half_a_turn_is_the_same_for_all_readers(tmp_path: Path) -> None:
    for angle in np.linspace(179, 181, 9):
        turn, affine = np.deg2rad(angle), np.eye(4)
        affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        affine[:3, :3] *= [0.3, 50, 0.02]  # mm
        path = write_volume(np.zeros((200, 9, 3), np.uint8), tmp_path / "a.nii", affine=affine)
        np.testing.assert_allclose(placement(path), affine, atol=1e-5)
        qform = nib.load(path).get_qform(coded=True)[0]
        assert qform is None or np.abs((qform - affine) @ [199, 8, 2, 1]).max() < 0.05 * 0.02


@pytest.mark.parametrize("angle", [0.0, 0.02, 0.05, 0.1, 0.5])
def test_rounding_of_a_quaternion_near_half_a_turn_is_accepted(tmp_path: Path, angle: float) -> None:
    """LPS and RAS are half a turn apart, so a slightly oblique axial scan is here; nibabel writes both forms."""
    turn, affine = np.deg2rad(180 - angle), np.eye(4)  # degrees
    affine[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * 0.4
    affine[:3, 2:] = [[0, 100], [0, 120], [0.6, -300]]
    data = np.zeros((1000, 1000, 3), np.uint8)
    np.testing.assert_allclose(
        placement(save(tmp_path / "a.nii.gz", data, sform=affine, qform=affine)), affine, atol=1e-4
    )
    other = affine @ np.diag([1, 1, 1.2, 1])
    with pytest.raises(GeometryError, match="sform and qform disagree"):
        read_header(save(tmp_path / "b.nii.gz", data, sform=affine, qform=other))


def test_contradicting_forms_are_rejected_unless_one_is_chosen(tmp_path: Path) -> None:
    other, sheared = np.diag([2.0, 2, 2, 1]), AFFINE.copy()
    sheared[1, 2] = 0.7
    for sform, qform in ((AFFINE, other), (sheared, AFFINE)):
        path = save(tmp_path / "a.nii", sform=sform, qform=qform)
        with pytest.raises(GeometryError, match=r"a.nii: sform and qform disagree"):
            read_volume(path)
        assert np.allclose(placement(path, form="sform"), sform)
        assert np.allclose(placement(path, form="qform"), qform, atol=1e-5)
    with pytest.raises(ConfigError, match="unknown form"):
        read_volume(path, form="guess")
    path = save(tmp_path / "b.nii", sform=None, qform=None)
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        read_volume(path)
    record = read_header(path, form="pixdim")
    assert np.allclose(record.geometry.spacing_mm, (0.8, 0.9, 2.5))
    assert record.warnings == ("placement ignored: spacing only",)


@pytest.mark.parametrize("affine", [AFFINE, AFFINE @ np.diag([-1, 1, 1, 1.0])], ids=["right-handed", "left-handed"])
def test_one_form_is_enough(tmp_path: Path, affine: np.ndarray) -> None:
    for forms in ({"sform": affine, "qform": None}, {"sform": None, "qform": affine}):
        volume = read_volume(save(tmp_path / "a.nii", **forms))
        assert np.allclose(volume.record.geometry.affine, affine, atol=1e-5)
        assert np.array_equal(volume.image[0].numpy(), VOXELS)
    fields = pixdim(0, 0)  # a qfac of 0 means 1
    fields["pixdim"][1:4] = 0.7, 0.9, 2.5
    affine = np.diag([0.7, 0.9, 2.5, 1])
    assert np.allclose(placement(save(tmp_path / "b.nii", sform=None, qform=affine, **fields)), affine)


@pytest.mark.parametrize("qform", [AFFINE, None])
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_an_impossible_pixdim_is_rejected_unless_the_sform_is_chosen(
    tmp_path: Path, qform: np.ndarray | None, value: float
) -> None:
    path = save(tmp_path / "a.nii", qform=qform, **pixdim(2, value))
    with pytest.raises(GeometryError, match=r"a\.nii: pixdim must be positive .*pass --form sform"):
        read_volume(path)
    assert np.allclose(placement(path, form="sform"), AFFINE)


def test_a_singular_or_infinite_affine_is_rejected(tmp_path: Path) -> None:
    parallel, nan, inf = [-0.8, 0, 0, 0], [0, np.nan, 0, 0], [0, np.inf, 0, 0]
    for axis, row in (("x", [0, 0, 0, 0]), ("z", [0, 0, 1e6, 0]), ("y", parallel), ("y", nan), ("y", inf)):
        path = save(tmp_path / "a.nii", qform=None, **{f"srow_{axis}": row})
        with pytest.raises(GeometryError, match=r"a\.nii"):
            read_header(path)
    with pytest.raises(GeometryError, match="qform cannot be used"):
        read_volume(save(tmp_path / "a.nii", sform=None, quatern_b=2))  # not a rotation


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"qform": None, **pixdim(3, 5)}, "sform used; pixdim 0.8 x 0.9 x 5 differs from its spacing 0.8 x 0.9 x 2.5"),
        ({"xyzt_units": 1}, "header claims metres; lengths are taken as mm"),
        ({"xyzt_units": 3}, "header claims micrometres; lengths are taken as mm"),
        ({"xyzt_units": 2 + 8}, None),
    ],
)
def test_unusual_headers_are_read_with_a_warning(tmp_path: Path, options: Any, warning: str | None) -> None:
    record = read_volume(save(tmp_path / "a.nii", **options)).record
    assert np.allclose(record.geometry.affine, AFFINE)
    assert record.warnings == (() if warning is None else (warning,))


@pytest.mark.parametrize("slope", [0, np.nan, np.inf, -2, 0.1])
def test_slope_and_intercept_are_applied_as_nibabel_does(tmp_path: Path, slope: float) -> None:
    # nifti1.h: "if scl_slope == 0, the data is not scaled"
    path = save(tmp_path / "a.nii", scl_slope=slope, scl_inter=-1024)
    volume = read_volume(path)
    assert np.array_equal(volume.image[0].numpy(), nib.load(path).get_fdata(dtype=np.float32))
    assert len(volume.record.warnings) == (not np.isfinite(slope))


def test_axes_of_length_one_are_dropped_and_a_fourth_axis_must_be_declared(tmp_path: Path) -> None:
    assert read_volume(save(tmp_path / "a.nii", VOXELS[..., None])).image.shape == (1, 5, 6, 7)
    data = ramp(5, 6, 7, 3)
    for stored in (data, data[..., None, :]):  # as vectors are stored
        path = save(tmp_path / "b.nii", stored)
        with pytest.raises(DataError, match=r"b.nii: volume has a fourth axis that is not declared"):
            read_volume(path)
        with pytest.raises(DataError, match=r"wrong number of channels \(received 3, expected 2\)"):
            read_volume(path, channels=2)
        assert np.array_equal(read_volume(path, channels=3).image.numpy(), np.moveaxis(data, -1, 0))
        assert read_header(path, channels=3).channels == 3
    with pytest.raises(DataError, match="more than four axes"):
        read_volume(save(tmp_path / "c.nii", ramp(5, 6, 7, 2, 3)), channels=6)


def test_a_volume_of_one_slice_is_a_2d_image_only_on_request(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(5, 6, 1))
    assert read_volume(path).image.shape == (1, 5, 6, 1)
    assert read_volume(path, spatial_dims=2).image.shape == (1, 5, 6)
    with pytest.raises(GeometryError, match="must be a volume, not a single slice"):
        read_volume(path, spatial_dims=3)
    with pytest.raises(GeometryError, match="must be a 2D image, not a volume"):
        read_volume(save(tmp_path / "b.nii"), spatial_dims=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_that_are_not_finite_in_float32_are_rejected_or_filled(tmp_path: Path, value: float) -> None:
    data = ramp(5, 6, 7, dtype="float64")
    data[1, 2, 3] = value
    path = save(tmp_path / "a.nii", data)
    with pytest.raises(DataError, match="NaN or infinite \\(received 1 of 210\\)"):
        read_volume(path)
    data[1, 2, 3] = -7
    assert np.array_equal(read_volume(path, fill_value=-7).image[0].numpy(), data)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        *[({"datatype": code}, r"unsupported voxel type|damaged NIfTI header") for code in (1, 32, 128, 1792, 0, 9999)],
        *[({"dim": [*dim, 1, 1, 1, 1]}, "") for dim in ([3, 0, 6, 7], [3, -5, 6, 7], [0, 5, 6, 7], [1, 5, 6, 7])],
        ({"scl_slope": 2, "scl_inter": np.nan}, "damaged NIfTI header"),
        ({"vox_offset": 100}, "voxels start inside the header"),
        ({"magic": b"ni1"}, "name does not match the header"),
    ],
    ids=str,
)
def test_an_unusable_header_is_rejected(tmp_path: Path, fields: dict[str, Any], cause: str) -> None:
    with pytest.raises((DataError, GeometryError), match=rf"a\.nii: .*({cause})"):
        read_volume(save(tmp_path / "a.nii", **fields))


@pytest.mark.parametrize("packed", [False, True])
def test_an_absurd_size_allocates_no_memory(tmp_path: Path, packed: bool) -> None:
    for kind, shape in ((nib.Nifti1Image, (30000, 30000, 30000)), (nib.Nifti2Image, (1 << 40, 1 << 20, 1 << 20))):
        path = save(tmp_path / "a.nii", kind=kind, dim=[3, *shape, 1, 1, 1, 1])
        if packed:
            (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
            path = tmp_path / "a.nii.gz"
        tracemalloc.start()
        with pytest.raises(DataError, match="shorter than its header says"):
            read_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("empty.nii.gz", b"", "file has zero bytes"),
        ("text.nii.gz", b"no gzip at all", "not a gzip file"),
        ("text.nii", b"x" * 1000, "not a NIfTI file"),
        ("short.nii", b"\x5c\x01\x00\x00", "not a NIfTI file"),
        ("zip.nii.gz", gzip.compress(b"not an image", mtime=0), "not a NIfTI file"),
        ("missing.nii.gz", None, "does not exist"),
    ],
)
def test_a_file_of_another_kind_is_rejected(tmp_path: Path, name: str, content: bytes | None, cause: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {cause}"):
        read_volume(tmp_path / name)


RELATED = {
    **{"a.hdr": nib.Nifti1Pair, "a.img": nib.Nifti1Pair, "a.nii.bz2": nib.Nifti1Image, "a.nii": nib.Nifti1Image},
    **{"a.mgh": nib.MGHImage, "a.mgz": nib.MGHImage},
}


@pytest.mark.parametrize("name", RELATED)
def test_related_formats_are_read_as_nibabel_wrote_them_and_rejected_if_truncated(name: str, tmp_path: Path) -> None:
    path, voxels = tmp_path / name, np.random.default_rng(0).integers(-100, 900, (5, 6, 7)).astype(np.int16)
    nib.save(RELATED[name](voxels, AFFINE), path)
    volume = read_volume(path)
    assert np.array_equal(volume.image[0].numpy(), voxels)
    assert np.allclose(volume.record.geometry.affine, AFFINE, atol=1e-5)
    assert read_header(path).geometry.is_close(volume.record.geometry)
    data = path.with_suffix(".img") if name == "a.hdr" else path
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"shorter than its header|truncated|damaged"):
        read_volume(path)
    data.unlink()
    with pytest.raises(DataError, match=rf"{data.name.replace('a.img', 'a.(img|hdr)')}: does not exist|shorter"):
        read_volume(path)


def test_analyze_and_mgh_without_orientation_are_rejected(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(VOXELS, np.diag([0.7, 0.9, 2.5, 1])), tmp_path / "a.img")
    for path in (tmp_path / "a.img", tmp_path / "a.hdr"):
        with pytest.raises(GeometryError, match=r"a\.hdr: .* does not define which side is left.*--form pixdim"):
            read_volume(path)
        volume = read_volume(path, form="pixdim")
        assert np.array_equal(volume.image[0].numpy(), VOXELS)
        assert volume.record.geometry.affine.diagonal() == pytest.approx((0.7, 0.9, 2.5, 1))
        assert volume.record.format == "analyze"
    nib.save(nib.MGHImage(VOXELS, AFFINE), tmp_path / "a.mgh")
    data = bytearray((tmp_path / "a.mgh").read_bytes())
    data[28:30] = bytes(2)
    (tmp_path / "a.mgh").write_bytes(data)
    with pytest.raises(GeometryError, match="header has neither spacing nor orientation"):
        read_volume(tmp_path / "a.mgh")


@pytest.mark.parametrize("name", ["x" * 300 + ".nii.gz", "a\0b.png", "locked/a.tif", "none.mha", "none.xyz"])
def test_a_path_that_the_system_rejects_is_a_typed_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def denied(path: Path, **options: bool) -> object:  # tests may run as root, who can read every folder
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    for read in (read_volume, read_header):
        with pytest.raises(
            DataError, match=r"does not exist|cannot be opened: (File name too long|embedded null|Permission)"
        ):
            read(tmp_path / name)
