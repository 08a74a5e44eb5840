from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from medunet.errors import DataError
from medunet.io import read_header, read_volume, write_volume


def ramp(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_is_read_as_written_and_its_first_axis_is_the_width(tmp_path, suffix, dtype):
    pixels = ramp(33, 35, dtype=dtype) * (200 if dtype == "uint16" else 1)
    path = write_volume(pixels, tmp_path / f"a{suffix}")
    volume = read_volume(path)
    assert volume.image.shape == (1, 33, 35)
    assert np.array_equal(volume.image[0].numpy(), pixels)
    with Image.open(path) as picture:
        assert picture.size == (33, 35)
        assert np.array_equal(np.asarray(picture), pixels.T)
    assert volume.image.affine.tolist() == np.eye(4).tolist()
    assert read_header(path).dtype == dtype


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_colour_becomes_three_channels(tmp_path, suffix):
    pixels = ramp(33, 34, 3)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    volume = read_volume(path)
    assert np.array_equal(volume.image.numpy(), pixels.T)
    assert read_header(path).channels == 3


def test_alpha_is_dropped_and_recorded(tmp_path):
    pixels = ramp(5, 6, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert np.array_equal(volume.image.numpy(), pixels[..., :3].T)
    assert volume.record.warnings == ("alpha channel dropped",)


def test_palette_yields_its_indices(tmp_path):
    image = Image.fromarray(ramp(5, 6) % 3)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_volume(tmp_path / "a.png").image[0].numpy(), ramp(5, 6).T % 3)


def test_tiff_pages_are_a_volume(tmp_path):
    voxels = ramp(33, 34, 7)
    path = write_volume(voxels, tmp_path / "stack.tif")
    assert np.array_equal(read_volume(path).image[0].numpy(), voxels)
    assert read_header(path).geometry.shape == (33, 34, 7)
    assert np.array_equal(tifffile.imread(path), voxels.T)


def test_planar_colour_tiff_has_colour_first(tmp_path):
    pixels = ramp(3, 33, 34)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_volume(tmp_path / "a.tif").image.numpy(), pixels.swapaxes(1, 2))


def test_tiff_with_pages_of_several_sizes_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(ramp(5, 6))
        writer.write(ramp(7, 8))
    with pytest.raises(DataError, match=r"a.tif: pages have different sizes"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nrrd"])
def test_what_is_no_image_is_refused_by_name(tmp_path, name):
    for content, cause in ((b"", "zero bytes"), (b"some text", "readable|cannot be read")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: .*({cause})"):
            read_volume(tmp_path / name)


def test_truncated_png_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    path = write_volume(noise, tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a.png: image cannot be decoded"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_image_lies_where_simpleitk_puts_it(tmp_path, suffix):
    image = sitk.GetImageFromArray(ramp(5, 6, 7))  # z, y, x
    image.SetOrigin((1, 2, 3))
    image.SetSpacing((0.5, 0.6, 0.7))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.image.shape == (1, 7, 6, 5)
    index = (6, 2, 4)
    x, y, z = image.TransformIndexToPhysicalPoint(index)
    assert np.allclose(volume.record.geometry.affine @ (*index, 1), (-x, -y, z, 1))
    assert volume.image[(0, *index)] == image[index]


def test_itk_vector_image_has_channels_first(tmp_path):
    vectors = ramp(5, 6, 7, 3)
    sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), str(tmp_path / "a.nrrd"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.image.shape == (3, 7, 6, 5)
    assert np.array_equal(volume.image[1].numpy(), vectors[..., 1].T)


def test_unknown_format_names_the_known_ones(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"1")
    with pytest.raises(DataError, match=r"a.xyz: unknown format .*\.nii\.gz"):
        read_volume(tmp_path / "a.xyz")
