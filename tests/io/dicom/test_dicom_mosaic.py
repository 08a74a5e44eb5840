"""Siemens mosaics are split into slices as dcm2niix does it, and rejected if they do not place their slices."""

from __future__ import annotations

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from medunet.errors import DataError, GeometryError
from medunet.io import read_header, read_volume


@pytest.mark.parametrize(("normal", "lowest"), [(1.0, 30.0), (-1.0, 30 - 4 * 2.5)])
def test_tile_k_is_k_slices_from_the_first_along_the_normal_of_the_csa_header(tmp_path, made, normal, lowest):
    volume = read_volume(made.mosaic(tmp_path / "m.dcm", normal=normal))
    affine = np.diag([-0.7, -0.5, 2.5, 1.0])
    affine[:3, 3] = -10, -20, lowest
    assert np.allclose(volume.image.affine, affine)
    for k in range(5):
        slice_ = volume.image[0, ..., k if normal > 0 else 4 - k].numpy()
        assert np.array_equal(slice_, made.pixels(k).T + 1000)
    assert volume.record.geometry.is_close(read_header(tmp_path / "m.dcm").geometry)


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed (scripts/other_programs.sh)")
@pytest.mark.parametrize("normal", [1.0, -1.0])
def test_mosaics_are_read_as_dcm2niix_converts_them(tmp_path, made, normal):
    folder = tmp_path / "mosaics"
    folder.mkdir()
    for moment in (1, 2):
        made.mosaic(folder / f"{moment}.dcm", normal=normal, moment=moment)
    subprocess.run(["dcm2niix", "-f", "out", "-o", tmp_path, folder], check=True, capture_output=True)
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "out.nii"))
    for phase in (0, 1):
        image = read_volume(folder, phase=phase).image
        ours = nib.as_closest_canonical(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()))
        assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
        assert np.array_equal(ours.get_fdata(), theirs.get_fdata()[..., phase])


@pytest.mark.parametrize(
    ("tags", "error", "cause"),
    [
        ({}, DataError, "no CSA header that places its slices"),
        ({"SpacingBetweenSlices": "del"}, GeometryError, "no SpacingBetweenSlices"),
        ({"ImagePositionPatient": "del"}, GeometryError, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, GeometryError, "SliceNormalVector must be normal"),
        ({"Rows": 14}, DataError, "cannot be divided into its tiles"),
    ],
)
def test_mosaics_that_do_not_place_their_slices_are_rejected(tmp_path, made, tags, error, cause):
    path = made.mosaic(tmp_path / "m.dcm", **tags)
    if not tags:
        header = dcmread(path)
        header.remove_private_tags()
        made.save(header)
    with pytest.raises(error, match=cause):
        read_header(path)


@pytest.mark.parametrize(
    ("mark", "value"),
    [
        (b"SV10\4\3\2\1", b"\xff\xff\xff\x7f"),  # the number of tags of the CSA header
        (b"\x18\x00\x88\x00DS\x04\x00", b"\0"),  # SpacingBetweenSlices
    ],
)
def test_damaged_headers_are_rejected(tmp_path, made, mark, value):
    path = made.mosaic(tmp_path / "m.dcm", SpacingBetweenSlices=2.5)
    content = path.read_bytes()
    place = content.index(mark) + 8
    path.write_bytes(content[:place] + value + content[place + len(value) :])
    with pytest.raises(DataError, match="damaged header of a mosaic"):
        read_header(path)
