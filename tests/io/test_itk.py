"""NRRD and MetaImage: data that are damaged, truncated or too long, and headers without placement, are rejected."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medunet.errors import DataError, GeometryError
from medunet.io import read_header, read_label, read_volume

VOXELS = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(np.int16)
NAMES = ("a.mha", "a.mhd", "a.nrrd", "a.nhdr")


def saved(folder: Path, name: str, *, compressed: bool = True) -> tuple[Path, Path]:
    """Return the header, and the file that has the voxels."""
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((0.5, 0.6, 2.0))
    sitk.WriteImage(image, str(folder / name), useCompression=compressed)
    beside = [path for path in folder.iterdir() if path.name != name]
    return folder / name, beside[0] if beside else folder / name


def flipped(content: bytes, bit: int) -> bytes:
    data = bytearray(content)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_in_compressed_voxels_changes_the_image_silently(name: str, tmp_path: Path) -> None:
    path, data = saved(tmp_path, name)
    whole = data.read_bytes()
    n_bits = 8 * 250  # at the end of the file: compressed voxels and their checksum
    assert len(whole) > 250
    rejected = 0
    for bit in np.random.default_rng(1).integers(0, n_bits, 60):
        data.write_bytes(flipped(whole, 8 * len(whole) - 1 - int(bit)))
        try:
            assert np.array_equal(read_volume(path).image[0].numpy(), VOXELS.T)
        except DataError:
            rejected += 1
    assert rejected > 50


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_truncated_and_extra_data_are_rejected(name: str, compressed: bool, tmp_path: Path) -> None:
    path, data = saved(tmp_path, name, compressed=compressed)
    whole = data.read_bytes()
    assert np.array_equal(read_volume(path).image[0].numpy(), VOXELS.T)
    for content in (whole[:-1], whole[:-40], whole + b"x", whole + bytes(1000)):
        data.write_bytes(content)
        with pytest.raises(
            DataError, match=r"\.\w+: (file is (shorter|longer) than|compressed data are truncated|unknown data follow)"
        ):
            read_volume(path)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_header_that_claims_more_voxels_than_the_stream_has_is_rejected(name: str, tmp_path: Path) -> None:
    path, _ = saved(tmp_path, name)
    content = path.read_bytes()
    for old, new, cause in ((b"7 6 5", b"7 6 6", "shorter than"), (b"7 6 5", b"7 6 4", "longer than")):
        path.write_bytes(content.replace(old, new))
        with pytest.raises(DataError, match=cause):
            read_volume(path)


@pytest.mark.parametrize(("name", "field"), [("a.mha", b"ElementSpacing"), ("a.nrrd", b"space directions")])
def test_a_header_without_placement_is_rejected(name: str, field: bytes, tmp_path: Path) -> None:
    path, _ = saved(tmp_path, name)
    before, _, after = path.read_bytes().partition(field)
    path.write_bytes(before + after.partition(b"\n")[2])
    for read in (read_header, read_volume):
        with pytest.raises(GeometryError, match=r"header has no (spacing|orientation)"):
            read(path)


def test_a_nrrd_with_spacings_but_no_directions_needs_a_decision(tmp_path: Path) -> None:
    head = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nspacings: 0.5 0.6 2\nencoding: raw\nSegment0_ID:=a\n\n"
    for name in ("a.nrrd", "a.seg.nrrd"):
        (tmp_path / name).write_bytes(head.encode() + bytes(range(24)))
    with pytest.raises(GeometryError, match=r"no orientation.*--form pixdim"):
        read_volume(tmp_path / "a.nrrd")
    with pytest.raises(GeometryError, match="no orientation"):
        read_label(tmp_path / "a.seg.nrrd", reference=read_header(saved(tmp_path, "b.mha")[0]).geometry)
    volume = read_volume(tmp_path / "a.nrrd", form="pixdim")
    assert volume.record.geometry.affine.tolist() == np.diag([0.5, 0.6, 2, 1]).tolist()
    assert volume.record.warnings == ("placement ignored: spacing only",)


def test_a_field_that_places_voxels_may_not_occur_twice_but_comments_may(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "a.mha")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"NDims", b"Comment = a\nComment = b\nNDims"))
    assert np.array_equal(read_volume(path).image[0].numpy(), VOXELS.T)
    path.write_bytes(content.replace(b"NDims", b"CompressedData = False\nNDims"))
    with pytest.raises(DataError, match="header has a duplicate field"):
        read_volume(path)
