"""Rules of the grid: which slices make up a volume or a phase."""

import numpy as np
import pytest

from medunet.errors import DataError, GeometryError
from medunet.io import read_header, read_volume


def test_plain_series_is_a_volume_in_ras(tmp_path, made):
    uid = "1.2.826.0.1.3680043.8.498.1"
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), series=uid))
    assert volume.image.shape == (1, 7, 5, 4)  # columns, rows, slices
    assert volume.image.is_contiguous()
    assert volume.image[0, 2, 1, 3] == 100 * 3 + 1 * 7 + 2 - 1000
    record = volume.record
    expected = [[-0.7, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    assert np.allclose(record.geometry.affine, expected)
    assert (record.format, record.files, record.modality, record.dtype) == ("dicom", 4, "CT", "int16")
    assert record.warnings == ()
    assert len(record.series) == 12
    for secret in ("Secret", "SECRET", uid):
        assert secret not in str(record)


@pytest.mark.parametrize("number", [lambda k: 100 - k, "del", None], ids=["reversed", "missing", "empty"])
def test_order_of_slices_needs_no_instance_number(tmp_path, made, number):
    volume = read_volume(made.series(tmp_path / "ct", made.positions(), InstanceNumber=number))
    assert volume.image[0, 0, 0].tolist() == [-1000, -900, -800, -700]


def test_series_against_its_normal_is_reversed(tmp_path, made):
    # rows run to the patient's right: the normal points to the feet, and so does the third axis
    folder = made.series(tmp_path / "ct", made.positions(), ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    volume = read_volume(folder)
    assert volume.image[0, 0, 0].tolist() == [-700, -800, -900, -1000]
    assert volume.record.geometry.affine[:3, 2].tolist() == [0, 0, -2.5]
    assert np.linalg.det(volume.record.geometry.affine) > 0  # as for every set of slices: a right-handed grid


STACKS = {
    "one missing": (lambda made: np.delete(made.positions(8), 2, axis=0), "ct: slice distances are uneven: a slice is"),
    "two missing": (lambda made: np.delete(made.positions(8), [2, 3], axis=0), "2 slices are missing"),
    "thin": (lambda made: np.delete(made.positions(7, dz=0.01), 3, axis=0), "a slice is missing"),
    "moved table": (lambda made: made.positions(6) + np.outer([0, 0, 0, 1, 1, 1], [4, 0, 0]), "on a straight line"),
    "twice": (lambda made: made.positions()[[0, 1, 1, 2]], "same position but different pixels"),
    "several": (
        lambda made: np.repeat(made.positions(), 2, axis=0)[:-1],
        r"no tag divides .*several slices at 3 of 4 positions.*its own series",
    ),
}


@pytest.mark.parametrize("options", [{}, {"uneven": "resample", "tilt": "resample"}], ids=["plain", "resample"])
@pytest.mark.parametrize("stack", STACKS)
def test_incomplete_and_ambiguous_stacks_are_always_rejected(tmp_path, made, stack, options):
    positions, cause = STACKS[stack]
    with pytest.raises(GeometryError, match=cause):
        read_volume(made.series(tmp_path / "ct", positions(made)), **options)


def test_uneven_spacing_is_rejected_unless_resampling_is_requested(tmp_path, made):
    drifting = made.positions(21)
    drifting[:, 2] = np.cumsum([0, *[2.04] * 10, *[1.96] * 10])  # no gap is off by more than 0.04 mm
    with pytest.raises(GeometryError, match="uneven"):
        read_volume(made.series(tmp_path / "drift", drifting))
    positions = made.positions(5)
    positions[:, 2] = [0, 2, 5, 7, 9.9]  # gaps 2, 3, 2, 2.9
    folder = made.series(tmp_path / "ct", positions, pixels=lambda k: np.full((5, 7), 10 * positions[k, 2], "<i2"))
    with pytest.raises(GeometryError, match=r"uneven \(received 2 to 3 mm.*--uneven resample"):
        read_volume(folder)
    volume = read_volume(folder, uneven="resample")
    spacing = volume.record.geometry.spacing_mm[2]
    assert spacing == pytest.approx(9.9 / 5)  # 2 mm is usual: five steps fit
    # stored values grow with the position: linear interpolation keeps the line
    assert np.allclose(volume.image[0, 3, 2], 10 * spacing * np.arange(6) - 1000, atol=1e-3)
    assert volume.record.warnings == ("slices at uneven distances (2 to 3 mm) resampled to 1.98 mm",)
    assert read_header(folder, uneven="resample").geometry.is_close(volume.record.geometry)


def test_spacing_within_rounding_is_even(tmp_path, made):
    positions = made.positions(9)
    positions[:, 2] = np.round(np.arange(9) * 2.527, 2)  # gaps of 2.52 and 2.53
    record = read_header(made.series(tmp_path / "ct", positions))
    assert record.geometry.spacing_mm[2] == pytest.approx(20.22 / 8)


def test_change_to_thicker_slices_is_uneven_and_no_slice_is_missing(tmp_path, made):
    heights = np.array([0, 2.5, 5, 7.5, 10, 15, 20, 25])
    positions = np.column_stack([np.full(8, 10), np.full(8, 20), heights])
    thick = {"SliceThickness": lambda n: 5 if heights[n] > 10 else 2.5}
    folder = made.series(tmp_path / "thick", positions, **thick)
    with pytest.raises(GeometryError, match=r"distances are uneven \(received 2.5 to 5 mm.*--uneven resample"):
        read_volume(folder)
    volume = read_volume(folder, uneven="resample")
    assert volume.record.geometry.spacing_mm[2] == pytest.approx(2.5)
    assert np.array_equal(volume.image[0, ..., 6], (made.pixels(5) + made.pixels(4)).T / 2 - 1000 + 50)
    with pytest.raises(GeometryError, match="3 slices are missing"):
        read_volume(made.series(tmp_path / "thin", positions, SliceThickness=2.5), uneven="resample")


def test_gantry_tilt_is_kept_as_shear_or_resampled_on_request(tmp_path, made):
    positions = made.positions() + np.outer(range(4), [0, 0.5, 0])  # one row down at each slice
    folder = made.series(tmp_path / "ct", positions)
    sheared, upright = read_volume(folder), read_volume(folder, tilt="resample")
    grid, straight = sheared.record.geometry, upright.record.geometry
    assert grid.is_sheared
    for k, (x, y, z) in enumerate(positions):
        assert np.allclose(grid.affine @ (0, 0, k, 1), (-x, -y, z, 1))
    assert sheared.record.warnings == ("gantry tilt of 11.3 degrees kept as shear in the affine",)
    assert not straight.is_sheared
    assert upright.image.shape == (1, 7, 5 + 3, 4)  # three rows more: no voxel is lost
    # the shift is a whole row per slice, so that each voxel must be where the sheared affine puts it
    for index in np.ndindex(7, 5, 4):
        x, y, z, _ = np.linalg.solve(straight.affine, grid.affine @ (*index, 1))
        assert upright.image[0, round(x), round(y), round(z)] == sheared.image[(0, *index)]
    assert "resampled" in upright.record.warnings[0]
    assert read_header(folder, tilt="resample").geometry.is_close(straight)


def test_half_a_pixel_of_tilt_is_interpolated(tmp_path, made):
    positions = made.positions(3)
    positions[:, 1] -= 0.25 * np.arange(3)  # half a row up at each slice
    volume = read_volume(made.series(tmp_path / "ct", positions), tilt="resample")
    assert volume.image.shape == (1, 7, 6, 3)
    assert np.allclose(volume.record.geometry.affine[:3, 3], (-10, -19.5, 30))
    assert np.allclose(volume.image[0, 2, 2, 1], (made.pixels(1)[1, 2] + made.pixels(1)[2, 2]) / 2 - 1000)


def test_duplicates_with_equal_pixels_and_slope_are_dropped_and_recorded(tmp_path, made):
    made.series(tmp_path / "ct", made.positions(), series="1.2.3", prefix="a")
    folder = made.series(tmp_path / "ct", made.positions(2), series="1.2.3", prefix="b")
    volume = read_volume(folder)
    assert volume.image.shape == (1, 7, 5, 4)
    assert volume.record.warnings == ("2 duplicate slices dropped",)
    made.series(folder, made.positions(1), series="1.2.3", prefix="b", RescaleSlope=2)
    with pytest.raises(GeometryError, match="same position but different pixels"):
        read_volume(folder)


def test_phase_of_a_single_volume_is_zero(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions())
    assert read_volume(folder, phase=0).image.shape == (1, 7, 5, 4)
    with pytest.raises(DataError, match="single phase"):
        read_volume(folder, phase=1)


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"PixelSpacing": "del"}, "no usable PixelSpacing"),
        ({"PixelSpacing": [0.5]}, "no usable PixelSpacing"),
        ({"ImagePositionPatient": None}, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": "del"}, "no usable ImageOrientationPatient"),
        ({"PixelSpacing": [0, 0.5]}, "impossible PixelSpacing"),
        ({"PixelSpacing": [0.5, -0.5]}, "impossible PixelSpacing"),
        ({"PixelSpacing": [1e6, 1e6]}, "impossible PixelSpacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "must be orthonormal"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "must be orthonormal"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "must be orthonormal"),
    ],
)
def test_headers_without_a_possible_placement_are_rejected(tmp_path, made, tags, cause):
    folder = made.series(tmp_path / "ct", made.positions(), **tags)
    with pytest.raises(GeometryError, match=rf"ct/s0\d: .*{cause}"):
        read_header(folder)


def test_spacing_that_is_not_a_number_is_rejected(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions(), PixelSpacing=[0.25, 0.125])
    made.replace(folder, b"0.25\\0.125", b"junk\\inf  ")
    with pytest.raises(GeometryError, match="no usable PixelSpacing"):
        read_volume(folder)


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"Rows": 7, "Columns": 5}, "different sizes"),
        ({"PixelSpacing": [0.5, 0.71]}, "different PixelSpacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "different orientations"),
    ],
)
def test_mixed_slices_are_rejected(tmp_path, made, tags, cause):
    made.series(tmp_path / "ct", made.positions(2), series="1.2.3", prefix="a")
    folder = made.series(tmp_path / "ct", made.positions(5)[2:], series="1.2.3", prefix="b", **tags)
    with pytest.raises(GeometryError, match=rf"{cause} .*expected"):
        read_volume(folder)


def test_single_slice_is_rejected_as_a_volume_and_read_in_the_plane_under_any_name(tmp_path, made):
    folder = made.series(tmp_path / "ct", made.positions(1))
    path = (folder / "s01").rename(folder / "1.2.840")
    for source, options in ((folder, {}), (folder, {"spatial_dims": 3}), (path, {"spatial_dims": 3})):
        with pytest.raises(GeometryError, match="single slice"):
            read_volume(source, **options)
    for source, options in ((folder, {"spatial_dims": 2}), (path, {})):
        volume = read_volume(source, **options)
        assert np.array_equal(volume.image.numpy(), made.pixels(0).T[None] - 1000)
        assert volume.record.geometry.spacing_mm == (0.7, 0.5)
    whole = made.series(tmp_path / "whole", made.positions())
    with pytest.raises(GeometryError, match="must have one slice to be a 2D image"):
        read_volume(whole, spatial_dims=2)


SLICES, PHASES = 3, 4


def volumes(made, folder, **tags):
    """Write four volumes of three slices; a tag may be a function of slice and phase. Values: 1000 phase + 100 slice"""
    order = [(slice_, phase) for phase in range(PHASES) for slice_ in range(SLICES)]
    given = {
        tag: (lambda k, value=value: value(*order[k])) if callable(value) else value
        for tag, value in ({"InstanceNumber": 1, "prefix": "p", "series": "1.2.3"} | tags).items()
    }
    positions = np.array([made.positions(SLICES)[slice_] for slice_, _ in order])
    pixels = lambda k: made.pixels(order[k][0]) + np.int16(1000 * order[k][1])  # noqa: E731
    return made.series(folder, positions, pixels=pixels, **given)


VENDORS = {
    "GE, Canon and Toshiba number volume by volume": (
        {"InstanceNumber": lambda s, p: 1 + s + SLICES * p},
        "InstanceNumber of the first position 1, 4, 7, 10",
    ),
    "GE numbers descending slices": (
        {"InstanceNumber": lambda s, p: SLICES * (p + 1) - s},
        "InstanceNumber of the first position 3, 6, 9, 12",
    ),
    "Philips numbers position by position": (
        {"InstanceNumber": lambda s, p: 1 + p + PHASES * s},
        "InstanceNumber of the first position 1, 2, 3, 4",
    ),
    "diffusion: b-values repeat with other directions": (
        {"DiffusionBValue": lambda s, p: 1000.0 if p else 0.0, "InstanceNumber": lambda s, p: 1 + s + SLICES * p},
        "InstanceNumber",
    ),
    "phases are in the order of their numbers": (
        {"TemporalPositionIdentifier": lambda s, p: [1, 2, 10, 20][p]},
        "TemporalPositionIdentifier 1, 2, 10, 20",
    ),
    "Siemens counts acquisitions": ({"AcquisitionNumber": lambda s, p: p + 1}, "AcquisitionNumber 1, 2, 3, 4"),
    "echoes of two volumes": (
        {"TemporalPositionIdentifier": lambda s, p: 1 + p // 2, "EchoTime": lambda s, p: 4.6 * (1 + p % 2)},
        r"TemporalPositionIdentifier, EchoTime 1, 4\.6; 1, 9\.2; 2, 4\.6; 2, 9\.2",
    ),
    "magnitude and phase images": (
        {"ImageType": lambda s, p: ["ORIGINAL", "PRIMARY", "MP"[p % 2]], "EchoTime": lambda s, p: 4.6 * (1 + p // 2)},
        "EchoTime, ImageType",
    ),
    "beats of a heart differ in length": (
        {"TriggerTime": lambda s, p: str(200 * p + 7 * s)},
        "TriggerTime of the first position 0, 200, 400, 600",
    ),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_series_of_volumes_is_divided_into_phases(tmp_path, made, vendor):
    tags, named = VENDORS[vendor]
    folder = volumes(made, tmp_path / "mr", Modality="MR", **tags)
    with pytest.raises(DataError, match=rf"series has 4 phases \(received {named}.*choose one, such as --phase 1"):
        read_header(folder)
    for phase in range(PHASES):
        image = read_volume(folder, phase=phase).image[0]
        assert image[0, 0].tolist() == [1000 * phase + 100 * k - 1000 for k in range(SLICES)]
    with pytest.raises(DataError, match="phase=4"):
        read_header(folder, phase=4)


def test_mixed_numbers_do_not_distinguish_phases(tmp_path, made):
    shuffled = np.random.default_rng(0).permutation(SLICES * PHASES).tolist()
    folder = volumes(made, tmp_path / "mr", InstanceNumber=lambda s, p: shuffled[s + SLICES * p])
    for phase in (None, 0):
        with pytest.raises(GeometryError, match="same position but different pixels"):
            read_volume(folder, phase=phase)


def test_an_interrupted_volume_is_left_out(tmp_path, made):
    folder = volumes(made, tmp_path / "mr", AcquisitionNumber=lambda s, p: p + 1)
    sorted(folder.iterdir())[0].unlink()  # the last slice of the last volume
    with pytest.raises(DataError, match=r"series has 3 phases; 1 incomplete .*AcquisitionNumber 1, 2, 3,"):
        read_header(folder)
    volume = read_volume(folder, phase=2)
    assert volume.image[0, 0, 0].tolist() == [1000, 1100, 1200]
    assert "1 incomplete phases left out" in volume.record.warnings[0]


def test_volumes_with_the_same_pixels_are_duplicates_unless_a_phase_is_chosen(tmp_path, made):
    numbers = {"InstanceNumber": lambda k: 1 + k, "series": "1.2.3"}
    folder = made.series(
        tmp_path / "mr", np.tile(made.positions(3), (2, 1)), pixels=lambda k: made.pixels(k % 3), **numbers
    )
    assert read_volume(folder).record.warnings == ("3 duplicate slices dropped",)
    assert "phase 1 of 2 read" in read_volume(folder, phase=1).record.warnings[0]
