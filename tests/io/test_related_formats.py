"""Formats beside NIfTI that nibabel knows: pairs, Analyze 7.5, FreeSurfer's MGH, and bzip2."""

from __future__ import annotations

import bz2
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medunet.errors import DataError, GeometryError, SecurityError
from medunet.io import read_header, read_volume

VOXELS = np.random.default_rng(0).integers(-100, 900, (5, 6, 7)).astype(np.int16)
AFFINE = np.array([[-0.7, 0, 0.1, 5], [0, 0.9, 0, 7], [0.1, 0, 2.5, -3], [0, 0, 0, 1]])


def saved(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith((".mgh", ".mgz")):
        nib.save(nib.MGHImage(VOXELS, AFFINE), path)
    elif name.endswith(".bz2"):
        nib.save(nib.Nifti1Image(VOXELS, AFFINE), path)
    else:
        nib.save(nib.Nifti1Pair(VOXELS, AFFINE), path)
    return path


@pytest.mark.parametrize("name", ["a.hdr", "a.img", "a.mgh", "a.mgz", "a.nii.bz2"])
def test_voxels_and_placement_are_those_that_nibabel_wrote(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    volume = read_volume(path)
    assert np.array_equal(volume.image[0].numpy(), VOXELS)
    assert np.allclose(volume.record.geometry.affine, AFFINE, atol=1e-5)
    assert read_header(path).geometry.is_close(volume.record.geometry)


@pytest.mark.parametrize("name", ["a.hdr", "a.mgh", "a.mgz", "a.nii.bz2"])
def test_truncated_files_are_rejected(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    data = path.with_suffix(".img") if name == "a.hdr" else path
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"shorter than its header|truncated|damaged"):
        read_volume(path)


def test_a_flipped_bit_in_bzip2_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.nii.bz2")
    whole = path.read_bytes()
    for bit in range(8 * 30, 8 * len(whole), 97):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(DataError):
            read_volume(path)


def test_a_bzip2_file_that_unpacks_to_far_more_than_it_needs_is_rejected(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "a.nii")
    packed = bz2.compress((tmp_path / "a.nii").read_bytes() + bytes(80 << 20))
    (tmp_path / "a.nii.bz2").write_bytes(packed)
    with pytest.raises(SecurityError, match="unpacks to more"):
        read_volume(tmp_path / "a.nii.bz2")


def test_analyze_has_a_spacing_but_no_orientation(tmp_path: Path) -> None:
    image = nib.AnalyzeImage(VOXELS, np.diag([0.7, 0.9, 2.5, 1]))
    nib.save(image, tmp_path / "a.img")
    for path in (tmp_path / "a.img", tmp_path / "a.hdr"):
        with pytest.raises(GeometryError, match=r"a\.hdr: Analyze 7\.5 does not say which side is left.*--form pixdim"):
            read_volume(path)
        volume = read_volume(path, form="pixdim")
        assert np.array_equal(volume.image[0].numpy(), VOXELS)
        assert volume.record.geometry.affine.diagonal() == pytest.approx((0.7, 0.9, 2.5, 1))
        assert volume.record.format == "analyze"


def test_mgh_without_orientation_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.mgh")
    data = bytearray(path.read_bytes())
    data[28:30] = bytes(2)
    path.write_bytes(data)
    with pytest.raises(GeometryError, match="header has neither spacing nor orientation"):
        read_volume(path)


def test_a_header_whose_voxels_are_missing_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.hdr")
    path.with_suffix(".img").unlink()
    with pytest.raises(DataError, match=r"a\.img: does not exist"):
        read_volume(path)


def test_a_qfac_of_0_means_1(tmp_path: Path) -> None:
    affine = np.diag([0.7, 0.9, 2.5, 1])
    image = nib.Nifti1Image(VOXELS, affine)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[76:80] = bytes(4)
    (tmp_path / "a.nii").write_bytes(data)
    assert np.allclose(read_volume(tmp_path / "a.nii").record.geometry.affine, affine)


@pytest.mark.parametrize("name", ["x" * 300 + ".nii.gz", "a\0b.png", "locked/a.tif", "none.mha", "none.xyz"])
def test_a_path_that_the_system_rejects_is_a_typed_error(name: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "locked").mkdir()
    stat = Path.stat

    def denied(path: Path, **options: bool) -> object:  # tests may run as root, whom no folder is locked for
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    for read in (read_volume, read_header):
        with pytest.raises(
            DataError, match=r"does not exist|cannot be opened: (File name too long|embedded null|Permission)"
        ):
            read(tmp_path / name)
