import time
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from monai.transforms import LoadImage
from PIL import Image

from medunet.errors import DataError
from medunet.io import MedunetReader, read_header, read_volume, write_volume


def ramp(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("name", "shape"), [("a.png", (33, 35)), ("a.tif", (33, 35)), ("stack.tif", (33, 34, 7))])
def test_a_picture_is_read_as_written_and_its_first_axis_is_the_width(tmp_path, name, shape, dtype):
    pixels = ramp(*shape, dtype=dtype) * (200 if dtype == "uint16" else 1)
    path = write_volume(pixels, tmp_path / name)
    volume = read_volume(path)
    assert np.array_equal(volume.image[0].numpy(), pixels)
    if len(shape) == 2:
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), pixels.T)
    else:
        assert np.array_equal(tifffile.imread(path), pixels.T)
    assert volume.image.affine.tolist() == np.eye(4).tolist()
    assert (read_header(path).dtype, read_header(path).geometry.shape) == (dtype, shape)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_colour_becomes_three_channels(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(ramp(33, 34, 3)).save(path)
    assert np.array_equal(read_volume(path).image.numpy(), ramp(33, 34, 3).T)
    assert read_header(path).channels == 3
    if suffix == ".tif":
        tifffile.imwrite(path, ramp(33, 34, 3).T, photometric="rgb", planarconfig="separate")
        assert np.array_equal(read_volume(path).image.numpy(), ramp(33, 34, 3).T.swapaxes(1, 2))


def test_a_palette_yields_its_indices(tmp_path):
    image = Image.fromarray(ramp(5, 6) % 3)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_volume(tmp_path / "a.png").image[0].numpy(), ramp(5, 6).T % 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nrrd"])
def test_a_file_of_another_kind_is_rejected_by_name(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    truncated = write_volume(noise, tmp_path / "b.png").read_bytes()[:2000]
    for content, cause in ((b"", "zero bytes"), (b"some text", "readable|cannot be read"), (truncated, "read")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: .*({cause})"):
            read_volume(tmp_path / name)
    (tmp_path / "a.xyz").write_bytes(b"1")
    with pytest.raises(DataError, match=r"a.xyz: unknown format .*\.nii\.gz"):
        read_volume(tmp_path / "a.xyz")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_images_are_placed_as_by_simpleitk(tmp_path, suffix):
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
    vectors = ramp(5, 6, 7, 3)
    sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), str(tmp_path / f"a{suffix}"))
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}").image.numpy(), vectors.T)


def png_of(depth: int, colour_type: int, rows: list[bytes], width: int) -> bytes:
    """A PNG with these packed rows, written by hand: Pillow writes neither 16-bit colour nor grey values of 2 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + len(rows).to_bytes(4, "big") + bytes([depth, colour_type, 0, 0, 0])
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "samples", "channels"), [(2, 3, 3), (4, 2, 1), (6, 4, 3), (0, 1, 1)])
def test_a_png_of_16_bits_keeps_all_bits(tmp_path, colour_type, samples, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 6, samples), np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png_of(16, colour_type, [row.astype(">u2").tobytes() for row in pixels], 6))
    volume = read_volume(path)
    assert np.array_equal(volume.image.numpy(), pixels[..., :channels].T)
    assert volume.record.dtype == "uint16"
    assert ("alpha channel dropped" in volume.record.warnings) == (samples > channels)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_alpha_that_is_the_same_everywhere_is_dropped_without_a_warning(tmp_path, name):
    pixels = ramp(7, 5, 4)
    for varies in (True, False):
        pixels[..., 3] = np.arange(5) if varies else 255
        Image.fromarray(pixels).save(tmp_path / name)
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.image.numpy(), pixels[..., :3].T)
        assert bool(volume.record.warnings) is varies


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_a_grey_picture_is_read_as_colour_only_for_three_channels(tmp_path, name):
    Image.fromarray(ramp(7, 5)).save(tmp_path / name)
    grey = read_volume(tmp_path / name).image
    for channels in (None, 1, 2, 4):
        assert len(read_volume(tmp_path / name, channels=channels).image) == 1
    volume = read_volume(tmp_path / name, channels=3)
    assert torch.equal(volume.image, grey.repeat(3, 1, 1))
    for record in (volume.record, read_header(tmp_path / name, channels=3)):
        assert (record.channels, record.warnings) == (3, ("grey picture is read as colour",))
    assert len(read_volume([tmp_path / name] * 3, channels=3).image) == 3  # channels in files of their own
    stack = write_volume(ramp(7, 5, 4), tmp_path / "stack.tif")
    assert len(read_volume(stack, channels=3).image) == 1
    item = LoadImage(MedunetReader(channels=3), ensure_channel_first=True)(tmp_path / name)
    assert torch.equal(item, volume.image)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_in_a_png_of_few_bits_keep_their_values(tmp_path, bits):
    values = np.arange(24).reshape(3, 8) % (1 << bits)
    rows = [np.packbits([int(d) for v in row for d in f"{v:0{bits}b}"]).tobytes() for row in values]
    (tmp_path / "a.png").write_bytes(png_of(bits, 0, rows, 8))
    assert np.array_equal(read_volume(tmp_path / "a.png").image[0].numpy(), values.T)


def require_no_silent_damage(path, bits):
    whole, expected, rejected = path.read_bytes(), read_volume(path).image[0].numpy(), 0
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert np.array_equal(read_volume(path).image[0].numpy(), expected)  # beyond the last pixel
        except DataError:
            rejected += 1
    assert rejected > 0.8 * len(bits)


def test_no_flipped_bit_in_a_png_or_a_deflated_tiff_changes_pixels_silently(tmp_path):
    path = write_volume(ramp(9, 8), tmp_path / "a.png")
    require_no_silent_damage(path, range(0, 8 * path.stat().st_size, 3))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp(40, 41), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        (start,), (length,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    require_no_silent_damage(path, range(8 * start, 8 * (start + length), 29))


def imagej(path, pixels, axes, **metadata):
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": axes, **metadata}, resolution=(5, 4))
    return read_volume(path)


def test_channels_of_imagej_and_ome_are_channels_and_depth_is_a_volume(tmp_path):
    pixels = ramp(4, 2, 5, 6, dtype="uint16")
    expected = pixels.transpose(1, 3, 2, 0)  # C, x, y, z
    assert np.array_equal(imagej(tmp_path / "a.tif", pixels, "ZCYX").image.numpy(), expected)
    assert np.array_equal(imagej(tmp_path / "b.tif", pixels[0], "CYX").image.numpy(), expected[..., 0])
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels.swapaxes(0, 1), metadata={"axes": "CZYX"})
    volume = read_volume(tmp_path / "a.ome.tif")
    assert np.array_equal(volume.image.numpy(), expected)
    assert volume.record.channels == 2


def test_pages_of_several_sizes_times_or_other_colours_are_rejected(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(ramp(5, 6))
        writer.write(ramp(7, 8))
    with pytest.raises(DataError, match=r"a.tif: pages have different sizes"):
        read_volume(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif: image has a time axis .*TYX"):
        imagej(tmp_path / "a.tif", ramp(4, 5, 6, dtype="uint16"), "TYX")
    tifffile.imwrite(tmp_path / "a.tif", ramp(5, 6, 4), photometric="separated")
    with pytest.raises(DataError, match="unsupported colours"):
        read_volume(tmp_path / "a.tif")


def test_spacing_is_read_if_the_file_states_it_and_never_guessed(tmp_path):
    pixels = ramp(4, 5, 6, dtype="uint16")
    known = imagej(tmp_path / "a.tif", pixels, "ZYX", spacing=0.5, unit="um").record
    assert known.geometry.spacing_mm == pytest.approx((0.2e-3, 0.25e-3, 0.5e-3))
    for metadata in ({"spacing": 0.5}, {"unit": "um"}, {"spacing": 0.5, "unit": "parsec"}):
        assert imagej(tmp_path / "b.tif", pixels, "ZYX", **metadata).record.geometry.spacing_mm == (1, 1, 1)
    sizes = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 2, "PhysicalSizeZUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": "ZYX", **sizes})
    assert read_header(tmp_path / "a.ome.tif").geometry.spacing_mm == pytest.approx((0.2e-3, 0.3e-3, 2e-6))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16"])
def test_large_values_are_bright_if_0_is_white_in_the_file(tmp_path, dtype):
    pixels = ramp(5, 8).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    largest = 1 if dtype == "bool" else np.iinfo(dtype).max
    assert np.array_equal(read_volume(tmp_path / "a.tif").image[0].numpy(), largest - pixels.T.astype(np.int64))


def test_samples_of_a_tiff_are_channels_and_alpha_is_dropped(tmp_path):
    pixels = ramp(5, 6, 2, dtype="uint16")
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, extrasamples=["unassalpha"], **options)
    volume = read_volume(tmp_path / "a.tif")
    assert np.array_equal(volume.image.numpy(), pixels[None, ..., 0].swapaxes(1, 2))
    assert volume.record.warnings == ("alpha channel dropped",)
    tifffile.imwrite(tmp_path / "b.tif", pixels, extrasamples=["unspecified"], **options)
    assert np.array_equal(read_volume(tmp_path / "b.tif").image.numpy(), pixels.T)


def test_a_chain_of_pages_without_end_is_rejected_quickly(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp(3, 5, 6), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[2].offset
        n_tags = len(tiff.pages[2].tags)
    data = bytearray(path.read_bytes())
    end = last + 2 + 12 * n_tags
    for target in (first, last):
        data[end : end + 4] = target.to_bytes(4, "little")
        path.write_bytes(data)
        began = time.process_time()
        for read in (read_header, read_volume):
            with pytest.raises(DataError, match="chain of pages has no end"):
                read(path)
        assert time.process_time() - began < 5


def test_a_missing_permission_is_reported(tmp_path, monkeypatch):
    path = write_volume(ramp(5, 6), tmp_path / "a.png")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)  # tests may run as root, who may read everything
    with pytest.raises(DataError, match=r"a.png: cannot be opened: Permission denied"):
        read_header(path)
