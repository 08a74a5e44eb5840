"""Rules of the pixels: slopes, padding, photometric interpretation, codecs, damage."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from medunet.errors import DataError
from medunet.io import read_header, read_volume

MPEG4 = "1.2.840.10008.1.2.4.103"


def test_slope_of_each_slice_is_its_own(tmp_path, made):
    folder = made.series(tmp_path / "pt", made.positions(), RescaleSlope=lambda k: 0.1 * (k + 1), Modality="PT")
    image = read_volume(folder).image[0].numpy()
    for k in range(4):
        expected = (made.pixels(k).T * (0.1 * (k + 1)) - 1000).astype(np.float32)
        assert np.array_equal(image[..., k], expected)


def test_stored_values_of_16_bits_keep_every_digit(tmp_path, made):
    pixels = np.arange(35, dtype="<u2").reshape(5, 7) + 65500
    image = read_volume(made.series(tmp_path / "ct", made.positions(), pixels=lambda k: pixels)).image
    assert np.array_equal(image[0, ..., 1].numpy(), pixels.T.astype(np.int32) - 1000)


@pytest.mark.parametrize(("value", "name"), [(0, "Slope"), ("nan", "Slope"), ("nan", "Intercept"), ("1e999", "Slope")])
def test_impossible_rescale_is_refused(tmp_path, made, value, name):
    folder = made.series(tmp_path / "ct", made.positions(), **{f"Rescale{name}": "12345"})
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"12345 ", str(value).encode().ljust(6)))
    for read in (read_volume, read_header):
        with pytest.raises(DataError, match=f"impossible Rescale{name}"):
            read(folder)


def test_ct_without_rescale_is_read_with_a_warning(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions(), RescaleSlope="del", RescaleIntercept="del")
    volume = read_volume(folder)
    assert volume.image[0, 2, 1, 3] == 300 + 7 + 2
    assert volume.record.warnings == ("4 of 4 slices have no rescale slope: stored values are used",)


def test_mr_without_rescale_is_ordinary_unless_some_slices_have_one(tmp_path, made):
    mr = {"series": "1.2.3", "Modality": "MR"}
    folder = made.series(tmp_path / "mr", made.positions(4)[:3], RescaleSlope="del", RescaleIntercept="del", **mr)
    assert read_volume(folder).record.warnings == ()
    made.series(folder, made.positions(4)[3:], prefix="t", **mr)
    assert read_volume(folder).record.warnings == ("3 of 4 slices have no rescale slope: stored values are used",)


def test_monochrome1_of_a_measurement_keeps_its_values(tmp_path, made):
    # PS3.3 C.7.6.3.1.2: the photometric interpretation concerns the display, after the modality's rescale
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), PhotometricInterpretation="MONOCHROME1"))
    assert volume.image[0, 2, 1, 3] == 309 - 1000
    assert volume.record.warnings == ("MONOCHROME1: values kept: they are measurements",)


@pytest.mark.parametrize(("dtype", "total"), [("<u2", (1 << 12) - 1), ("<i2", -1)])
def test_monochrome1_of_a_radiograph_is_turned_round(tmp_path, made, dtype, total):
    folder = made.series(
        tmp_path / "dx",
        made.positions(),
        pixels=lambda k: made.pixels(k).astype(dtype),
        PhotometricInterpretation="MONOCHROME1",
        Modality="DX",
        BitsStored=12,
        HighBit=11,
        RescaleIntercept=0,
    )
    volume = read_volume(folder)
    assert volume.image[0, 2, 1, 3] == total - 309
    assert volume.record.warnings == ("MONOCHROME1: values inverted: large is bright",)


def test_rgb_is_refused(tmp_path, made):
    folder = made.series(tmp_path / "sc", made.positions(), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = dataset.PixelData * 3
        dataset.save_as(file)
    with pytest.raises(DataError, match=r"not a grey image \(received RGB, 3 samples"):
        read_volume(folder)


def test_palette_colour_is_refused(tmp_path, made):
    with pytest.raises(DataError, match="not a grey image"):
        read_volume(made.series(tmp_path / "sc", made.positions(), PhotometricInterpretation="PALETTE COLOR"))


def padded(number: int, value: int = -2000) -> np.ndarray:
    pixels = np.full((5, 7), 100 + number, "<i2")
    pixels[0, :2] = value
    return pixels


def test_padding_outside_the_range_is_clamped_and_recorded(tmp_path, made):
    folder = made.series(
        tmp_path / "ct", made.positions(), pixels=padded, PixelPaddingValue=-2000, RescaleIntercept=-1024
    )
    volume = read_volume(folder)
    assert volume.image.min() == 100 - 1024
    assert volume.image[0, 0, 0].tolist() == [100 - 1024] * 4
    assert volume.image[0, 2, 0].tolist() == [100 - 1024, 101 - 1024, 102 - 1024, 103 - 1024]
    assert volume.record.warnings == ("8 padding voxels (-3024) clamped to -924",)


@pytest.mark.filterwarnings("ignore:.*PixelPaddingValue")
def test_series_of_padding_alone_is_rejected(tmp_path, made):
    pixels = lambda number: np.full((5, 7), -2000, "<i2")  # noqa: E731
    folder = made.series(tmp_path / "ct", made.positions(), pixels=pixels, PixelPaddingValue=-2000)
    with pytest.raises(DataError, match="every pixel is padding"):
        read_volume(folder)


def test_intercept_without_slope_is_applied_and_the_warning_says_so(tmp_path, made):
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), RescaleSlope="del"))
    assert np.array_equal(volume.image[0, ..., 0], made.pixels(0).T - 1000)
    assert volume.record.warnings == ("4 of 4 slices have no rescale slope: the intercept alone is applied",)


def test_padding_that_no_tag_declares_is_no_padding(tmp_path, made):
    assert read_volume(made.series(tmp_path / "ct", made.positions(), pixels=padded)).image.min() == -3000


def test_range_of_padding_is_clamped(tmp_path, made):
    folder = made.series(
        tmp_path / "ct",
        made.positions(),
        pixels=lambda k: padded(k, -2000 + k),
        PixelPaddingValue=-2000,
        PixelPaddingRangeLimit=-1997,
    )
    assert read_volume(folder).image.min() == 100 - 1000


def test_padding_in_unused_bits_is_clamped_to_the_lowest(tmp_path, made):
    def pixels(number):
        plane = made.pixels(number).astype("<u2")
        plane[0, 0] = 63536  # -2000 in 16 bits, of which 12 are stored
        return plane

    folder = made.series(
        tmp_path / "ct", made.positions(), pixels=pixels, PixelPaddingValue=63536, BitsStored=12, HighBit=11
    )
    assert read_volume(folder).image[0, 0, 0].tolist() == [1 - 1000] * 4


def test_padding_beside_the_range_is_an_ordinary_background(tmp_path, made):
    folder = made.series(tmp_path / "mr", made.positions(), PixelPaddingValue=0, RescaleIntercept=0, Modality="MR")
    volume = read_volume(folder)
    assert volume.image[0, 0, 0, 0] == 0
    assert volume.record.warnings == ()


def test_overlay_in_unused_bits_is_masked(tmp_path, made):
    folder = made.series(
        tmp_path / "ct", made.positions(), pixels=lambda k: made.pixels(k) | 0x4000, BitsStored=12, HighBit=11
    )
    assert np.array_equal(read_volume(folder).image[0, ..., 3].numpy(), made.pixels(3).T - 1000)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_truncated_pixel_data_is_refused_by_its_header_alone(tmp_path, made, cut):
    folder = made.series(tmp_path / "ct", made.positions())
    file = folder / "s02"
    file.write_bytes(file.read_bytes()[:-cut])
    for read in (read_volume, read_header):
        with pytest.raises(DataError, match=rf"s02: truncated pixel data \(received {70 - cut} bytes, expected 70"):
            read(folder)


@pytest.mark.parametrize("keep", [140, 400, 600])
def test_file_cut_within_its_header_is_refused(tmp_path, made, keep):
    folder = made.series(tmp_path / "ct", made.positions())
    file = folder / "s04"  # the first slice: without it the others would still be a volume
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"s04: .*(damaged|truncated|no pixel data|no transfer syntax)"):
        read_volume(folder)


def compressed(made, folder: Path, syntax: str, frame: bytes) -> Path:
    return made.series(folder, made.positions(), syntax=syntax, PixelData=encapsulate([frame]))


def rle(pixels: np.ndarray) -> bytes:
    """PS3.5 annex G: a header of segments, then high bytes and low bytes as literal runs."""
    planes = [pixels.astype(">u2").tobytes()[byte::2] for byte in (0, 1)]
    segments = [bytes([len(plane) - 1]) + plane for plane in planes]
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(segments[0])
    return header.tobytes() + b"".join(segments)


def test_rle_is_decoded(tmp_path, made):
    volume = read_volume(compressed(made, tmp_path / "ct", RLELossless, rle(made.pixels(2))))
    assert np.array_equal(volume.image[0, ..., 1].numpy(), made.pixels(2).T - 1000)


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        ("57", "pylibjpeg pylibjpeg-libjpeg"),
        ("80", "pylibjpeg pylibjpeg-libjpeg"),
        ("201", "pylibjpeg pylibjpeg-openjpeg"),
        ("103", "python-gdcm"),
    ],
)
def test_missing_codec_names_the_package_to_install(tmp_path, made, monkeypatch, syntax, package):
    if syntax == "201" and int(pydicom.__version__.partition(".")[0]) < 3:
        pytest.skip("pydicom 2 does not know HTJ2K, so it writes no file of it")
    for name in ("JPEG8", "JPEGLS", "HTJ2K"):
        monkeypatch.setattr(getattr(imagecodecs, name), "available", False)
    folder = compressed(made, tmp_path / "ct", f"1.2.840.10008.1.2.4.{syntax}", b" no image \xff\xd9")
    with pytest.raises(DataError, match=rf"s04: codec missing: .*remedy: pip install {package}, or decompress"):
        read_volume(folder)


LOSSLESS = {
    "jpegls": ("80", {}),
    "jpeg8": ("70", {"lossless": True, "predictor": 1}),
    "jpeg2k": ("90", {"reversible": True, "codecformat": "j2k"}),
}


@pytest.mark.parametrize("dtype", ["<u2", "<i2"])
@pytest.mark.parametrize("codec", ["jpegls", "jpeg8", "jpeg2k"])
def test_compressed_pixels_are_those_that_were_compressed(tmp_path, made, dtype, codec):
    last, options = LOSSLESS[codec]

    def pixels(number):
        return made.pixels(number).astype(dtype) - (200 if dtype == "<i2" else 0)

    def stream(number):
        stored = pixels(number).view("<u2") if codec != "jpeg2k" else pixels(number)
        return encapsulate([getattr(imagecodecs, f"{codec}_encode")(stored, **options)])

    syntax = f"1.2.840.10008.1.2.4.{last}"
    folder = made.series(tmp_path / "ct", made.positions(), syntax=syntax, pixels=pixels, PixelData=stream)
    image = read_volume(folder).image[0].numpy()
    assert np.array_equal(image, np.stack([pixels(k).T.astype(np.float32) - 1000 for k in range(4)], axis=-1))


@pytest.mark.parametrize("syntax", ["4.50", "4.57", "4.70", "4.80", "4.90", "5"])
def test_damaged_codestream_is_refused(tmp_path, made, syntax):
    folder = compressed(made, tmp_path / "ct", f"1.2.840.10008.1.2.{syntax}", bytes(98) + b"\xff\xd9")
    with pytest.raises(DataError, match="pixel data cannot be decoded"):
        read_volume(folder)


ENCODINGS = [f"{k}.dcm" for k in range(1, 10)]


@pytest.mark.data
@pytest.mark.parametrize("name", ENCODINGS)
def test_real_image_is_the_same_in_all_nine_transfer_syntaxes(test_data, name):
    folder = test_data / "dicom" / "mr_transfer_syntaxes"
    mosaic = pydicom.dcmread(folder / "1.dcm").pixel_array  # 6 x 6 tiles of 64 x 64, the last one empty
    volume = read_volume(folder / name)
    assert volume.image.shape == (1, 64, 64, 35)
    assert np.array_equal(volume.image[0, ..., 8].numpy(), mosaic[64:128, 128:192].T)
    assert volume.record.geometry.is_close(read_header(folder / "1.dcm").geometry)


@pytest.mark.data
def test_nine_copies_of_one_mosaic_are_one_volume(test_data):
    volume = read_volume(test_data / "dicom" / "mr_transfer_syntaxes")
    assert volume.image.shape == (1, 64, 64, 35)
    assert volume.record.warnings == (f"{8 * 35} duplicate slices dropped",)


@pytest.mark.data
@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("part", [0.5, 0.99])
def test_real_image_cut_in_any_transfer_syntax_is_refused(test_data, tmp_path, name, part):
    content = (test_data / "dicom" / "mr_transfer_syntaxes" / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match="truncated pixel data"):
        read_header(tmp_path / name)


@pytest.mark.data
@pytest.mark.parametrize("name", ["5.dcm", "7.dcm", "9.dcm"])
def test_codestream_cut_within_whole_items_is_refused(test_data, tmp_path, name):
    dataset = pydicom.dcmread(test_data / "dicom" / "mr_transfer_syntaxes" / name)
    item = dataset.PixelData.rindex(b"\xfe\xff\x00\xe0")
    frame = dataset.PixelData[item + 8 : -8]
    dataset.PixelData = encapsulate([frame[: len(frame) // 2 * 2 // 3 * 2]])
    dataset.save_as(tmp_path / name)
    with pytest.raises(DataError, match="codestream has no end"):
        read_header(tmp_path / name)
