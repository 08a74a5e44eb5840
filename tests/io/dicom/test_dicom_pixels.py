"""Rules of the pixels: slopes, lookup tables, padding, photometric interpretation, codecs, damage."""

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from medunet.errors import DataError
from medunet.io import read_header, read_volume

JPEG = "1.2.840.10008.1.2.4."


def test_each_slice_has_its_own_slope(tmp_path, made):
    folder = made.series(tmp_path / "pt", made.positions(), RescaleSlope=lambda k: 0.1 * (k + 1), Modality="PT")
    image = read_volume(folder).image[0].numpy()
    for k in range(4):
        expected = (made.pixels(k).T * (0.1 * (k + 1)) - 1000).astype(np.float32)
        assert np.array_equal(image[..., k], expected)


def test_stored_values_of_16_bits_are_exact(tmp_path, made):
    pixels = np.arange(35, dtype="<u2").reshape(5, 7) + 65500
    image = read_volume(made.series(tmp_path / "ct", made.positions(), pixels=lambda k: pixels)).image
    assert np.array_equal(image[0, ..., 1].numpy(), pixels.T.astype(np.int32) - 1000)


@pytest.mark.parametrize(("value", "name"), [(0, "Slope"), ("nan", "Slope"), ("nan", "Intercept"), ("1e999", "Slope")])
def test_impossible_rescale_is_rejected(tmp_path, made, value, name):
    folder = made.series(tmp_path / "ct", made.positions(), **{f"Rescale{name}": "12345"})
    made.replace(folder, b"12345 ", str(value).encode().ljust(6))
    with pytest.raises(DataError, match=f"impossible Rescale{name}"):
        read_header(folder)


def test_missing_slope_is_recorded_if_the_modality_or_other_slices_have_one(tmp_path, made):
    none = {"RescaleSlope": "del", "RescaleIntercept": "del"}
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), **none))
    assert volume.image[0, 2, 1, 3] == 300 + 7 + 2
    assert volume.record.warnings == ("4 of 4 slices have no rescale slope: stored values are used",)
    volume = read_volume(made.series(tmp_path / "intercept", made.positions(), RescaleSlope="del"))
    assert np.array_equal(volume.image[0, ..., 0], made.pixels(0).T - 1000)
    assert volume.record.warnings == ("4 of 4 slices have no rescale slope: the intercept alone is applied",)
    mr = {"series": "1.2.3", "Modality": "MR"}
    folder = made.series(tmp_path / "mr", made.positions(4)[:3], **none, **mr)
    assert read_volume(folder).record.warnings == ()
    made.series(folder, made.positions(4)[3:], prefix="t", **mr)
    assert read_volume(folder).record.warnings == ("3 of 4 slices have no rescale slope: stored values are used",)


def test_monochrome1_of_a_measurement_keeps_its_values(tmp_path, made):
    # PS3.3 C.7.6.3.1.2: the photometric interpretation concerns the display, after the modality's rescale
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), PhotometricInterpretation="MONOCHROME1"))
    assert volume.image[0, 2, 1, 3] == 309 - 1000
    assert volume.record.warnings == ("MONOCHROME1: values kept: they are measurements",)


@pytest.mark.parametrize(("dtype", "total"), [("<u2", (1 << 12) - 1), ("<i2", -1)])
def test_monochrome1_of_a_radiograph_is_inverted(tmp_path, made, dtype, total):
    tags = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "DX", "BitsStored": 12, "HighBit": 11}
    pixels = lambda k: made.pixels(k).astype(dtype)  # noqa: E731
    volume = read_volume(made.series(tmp_path / "dx", made.positions(), pixels=pixels, RescaleIntercept=0, **tags))
    assert volume.image[0, 2, 1, 3] == total - 309
    assert volume.record.warnings == ("MONOCHROME1: values inverted: large is bright",)


def test_colour_slices_are_rejected(tmp_path, made):
    data = {"PixelData": lambda k: made.pixels(k).tobytes() * 3, "SamplesPerPixel": 3}
    folder = made.series(tmp_path / "sc", made.positions(), PhotometricInterpretation="RGB", **data)
    with pytest.raises(DataError, match=r"not a grey image \(received RGB, 3 samples"):
        read_volume(folder)


def padded(number, value=-2000):
    pixels = np.full((5, 7), 100 + number, "<i2")
    pixels[0, :2] = value
    return pixels


@pytest.mark.parametrize(
    ("value", "tags", "lowest", "warnings"),
    [
        (-2000, {"PixelPaddingValue": -2000}, -900, ("8 padding voxels (-3000) clamped to -900",)),
        (
            -1998,
            {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1997},
            -900,
            ("8 padding voxels (-2998) clamped to -900",),
        ),
        (-2000, {}, -3000, ()),  # no tag declares it
    ],
)
def test_declared_padding_outside_the_range_is_clamped_and_recorded(tmp_path, made, *, value, tags, lowest, warnings):
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), pixels=lambda k: padded(k, value), **tags))
    assert volume.image[0, 0, 0].tolist() == [lowest] * 4
    assert volume.image[0, 2, 0].tolist() == [-900, -899, -898, -897]
    assert volume.record.warnings == warnings


@pytest.mark.filterwarnings("ignore:.*PixelPaddingValue")
def test_series_of_padding_alone_is_rejected(tmp_path, made):
    pixels = np.full((5, 7), -2000, "<i2")
    folder = made.series(tmp_path / "ct", made.positions(), pixels=lambda k: pixels, PixelPaddingValue=-2000)
    with pytest.raises(DataError, match="every pixel is padding"):
        read_volume(folder)


def test_padding_in_unused_bits_is_clamped_to_the_lowest(tmp_path, made):
    def pixels(number):
        plane = made.pixels(number).astype("<u2")
        plane[0, 0] = 63536  # -2000 in 16 bits, of which 12 are stored
        return plane

    tags = {"PixelPaddingValue": 63536, "BitsStored": 12, "HighBit": 11}
    folder = made.series(tmp_path / "ct", made.positions(), pixels=pixels, **tags)
    assert read_volume(folder).image[0, 0, 0].tolist() == [1 - 1000] * 4


def test_padding_beside_the_range_is_an_ordinary_background(tmp_path, made):
    folder = made.series(tmp_path / "mr", made.positions(), PixelPaddingValue=0, RescaleIntercept=0, Modality="MR")
    volume = read_volume(folder)
    assert volume.image[0, 0, 0, 0] == 0
    assert volume.record.warnings == ()


def test_overlay_in_unused_bits_is_masked(tmp_path, made):
    pixels = lambda k: made.pixels(k) | 0x4000  # noqa: E731
    folder = made.series(tmp_path / "ct", made.positions(), pixels=pixels, BitsStored=12, HighBit=11)
    assert np.array_equal(read_volume(folder).image[0, ..., 3].numpy(), made.pixels(3).T - 1000)


@pytest.mark.parametrize(("keep", "cause"), [(140, "damaged|truncated|no transfer syntax"), (-20, "received 50 bytes")])
def test_truncated_files_are_rejected_by_their_header_alone(tmp_path, made, keep, cause):
    folder = made.series(tmp_path / "ct", made.positions())
    file = folder / "s04"  # the first slice: without it the others would still be a volume
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"s04: .*({cause})"):
        read_header(folder)


def test_rle_is_decoded(tmp_path, made):
    # PS3.5 annex G: a header of segments, then high bytes and low bytes as literal runs
    planes = [made.pixels(2).astype(">u2").tobytes()[byte::2] for byte in (0, 1)]
    segments = [bytes([len(plane) - 1]) + plane for plane in planes]
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(segments[0])
    data = encapsulate([header.tobytes() + b"".join(segments)])
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), syntax=RLELossless, PixelData=data))
    assert np.array_equal(volume.image[0, ..., 1].numpy(), made.pixels(2).T - 1000)


@pytest.mark.parametrize("syntax", ["57", "103"])
def test_missing_codec_names_the_package_to_install(tmp_path, made, monkeypatch, syntax):
    monkeypatch.setattr(imagecodecs.JPEG8, "available", False)
    data = encapsulate([b" no image \xff\xd9"])
    folder = made.series(tmp_path / "ct", made.positions(), syntax=JPEG + syntax, PixelData=data)
    with pytest.raises(DataError, match=r"s04: codec missing: .*remedy: pip install 'pylibjpeg\[all\]', or decompress"):
        read_volume(folder)


LOSSLESS = {
    "jpegls": ("80", {}),
    "jpeg8": ("70", {"lossless": True, "predictor": 1}),
    "jpeg2k": ("90", {"reversible": True, "codecformat": "j2k"}),
}


@pytest.mark.parametrize("dtype", ["<u2", "<i2"])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_compressed_pixels_are_decoded_exactly(tmp_path, made, dtype, codec):
    last, options = LOSSLESS[codec]
    pixels = [made.pixels(k).astype(dtype) - (200 if dtype == "<i2" else 0) for k in range(4)]

    def stream(number):
        stored = pixels[number].view("<u2" if codec != "jpeg2k" else dtype)
        return encapsulate([getattr(imagecodecs, f"{codec}_encode")(stored, **options)])

    options_of_files = {"syntax": JPEG + last, "pixels": lambda k: pixels[k], "PixelData": stream}
    image = read_volume(made.series(tmp_path / "ct", made.positions(), **options_of_files)).image[0].numpy()
    assert np.array_equal(image, np.stack([plane.T.astype(np.float32) - 1000 for plane in pixels], axis=-1))


@pytest.mark.parametrize("syntax", [*(JPEG + last for last in ("50", "57", "70", "80", "90")), RLELossless])
def test_damaged_codestreams_are_rejected(tmp_path, made, syntax):
    data = encapsulate([bytes(98) + b"\xff\xd9"])
    with pytest.raises(DataError, match="pixel data cannot be decoded"):
        read_volume(made.series(tmp_path / "ct", made.positions(), syntax=syntax, PixelData=data))


@pytest.mark.data
@pytest.mark.parametrize("number", range(1, 10))
def test_real_image_is_equal_in_all_transfer_syntaxes_and_rejected_if_cut(test_data, tmp_path, number):
    folder = test_data / "dicom" / "mr_transfer_syntaxes"
    mosaic = pydicom.dcmread(folder / "1.dcm").pixel_array  # 6 x 6 tiles of 64 x 64, the last one empty
    volume = read_volume(folder / f"{number}.dcm")
    assert volume.image.shape == (1, 64, 64, 35)
    assert np.array_equal(volume.image[0, ..., 8].numpy(), mosaic[64:128, 128:192].T)
    assert volume.record.geometry.is_close(read_header(folder / "1.dcm").geometry)
    content = (folder / f"{number}.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: int(len(content) * 0.99)])
    with pytest.raises(DataError, match="truncated pixel data"):
        read_header(tmp_path / "cut.dcm")


@pytest.mark.data
@pytest.mark.parametrize("name", ["5.dcm", "7.dcm", "9.dcm"])
def test_codestream_cut_within_whole_items_is_rejected(test_data, tmp_path, name):
    dataset = pydicom.dcmread(test_data / "dicom" / "mr_transfer_syntaxes" / name)
    item = dataset.PixelData.rindex(b"\xfe\xff\x00\xe0")
    frame = dataset.PixelData[item + 8 : -8]
    dataset.PixelData = encapsulate([frame[: len(frame) // 2 * 2 // 3 * 2]])
    dataset.save_as(tmp_path / name)
    with pytest.raises(DataError, match="codestream has no end"):
        read_header(tmp_path / name)


def table(count: int, first: int, bits: int, data: object, kind: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count, first, bits])
    item.add_new("LUTData", kind, data)
    item.ModalityLUTType = "HU"
    return Sequence([item])


NO_RESCALE = {"RescaleSlope": "del", "RescaleIntercept": "del"}
SQUARES = [k * k for k in range(250)]


@pytest.mark.parametrize(
    "options",
    [
        {"ModalityLUTSequence": table(250, 20, 16, np.array(SQUARES, "<u2").tobytes(), "OW")},
        {"ModalityLUTSequence": table(250, 20, 16, SQUARES), "syntax": ImplicitVRLittleEndian},
    ],
)
def test_values_are_looked_up_and_clamped_to_the_table(tmp_path, made, options):
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), **NO_RESCALE, **options))
    expected = np.stack([np.clip(made.pixels(k).T.astype(int) - 20, 0, 249) ** 2 for k in range(4)], axis=-1)
    assert np.array_equal(volume.image[0].numpy(), expected)
    assert volume.record.warnings == ()


def test_first_entry_may_be_negative_and_entries_may_have_eight_bits(tmp_path, made):
    tags = {"ModalityLUTSequence": table(100, -30, 8, bytes(range(100)), "OW"), **NO_RESCALE}
    folder = made.series(tmp_path / "ct", made.positions(2), pixels=lambda k: made.pixels(k) - 40, **tags)
    expected = np.clip(made.pixels(0).T - 40 + 30, 0, 99)
    assert np.array_equal(read_volume(folder).image[0, ..., 0].numpy(), expected)


@pytest.mark.parametrize(
    ("sequence", "rescale", "cause"),
    [
        (table(250, 20, 16, SQUARES), {}, "contradict"),
        (table(251, 20, 16, SQUARES), NO_RESCALE, "does not match its descriptor"),
        (table(250, 20, 8, SQUARES), NO_RESCALE, "does not match its descriptor"),
        (Sequence([Dataset()]), NO_RESCALE, "damaged ModalityLUTSequence"),
    ],
)
def test_invalid_tables_are_rejected(tmp_path, made, sequence, rescale, cause):
    folder = made.series(tmp_path / "ct", made.positions(), ModalityLUTSequence=sequence, **rescale)
    with pytest.raises(DataError, match=cause):
        read_volume(folder)
