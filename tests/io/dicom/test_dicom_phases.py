"""Series of several volumes are divided into phases as their vendors number them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.errors import DataError, GeometryError
from medunet.io import read_header, read_volume

SLICES, PHASES = 3, 4


def volumes(made: Any, folder: Path, **tags: Callable[[int, int], Any] | Any) -> Path:
    """Write four volumes of three slices; a tag may be a function of slice and phase. Values: 1000 phase + 100 slice"""
    order = [(slice_, phase) for phase in range(PHASES) for slice_ in range(SLICES)]
    given = {
        tag: (lambda k, value=value: value(*order[k])) if callable(value) else value
        for tag, value in ({"InstanceNumber": 1} | tags).items()
    }
    return made.series(
        folder,
        np.array([made.positions(SLICES)[slice_] for slice_, _ in order]),
        pixels=lambda k: made.pixels(order[k][0]) + np.int16(1000 * order[k][1]),
        prefix="p",
        series="1.2.3",
        **given,
    )


def assert_phases(folder: Path, named: str) -> None:
    with pytest.raises(DataError, match=rf"series has 4 phases \(received {named}.*choose one, such as --phase 1"):
        read_header(folder)
    for phase in range(PHASES):
        image = read_volume(folder, phase=phase).image[0]
        assert image[0, 0].tolist() == [1000 * phase + 100 * k - 1000 for k in range(SLICES)]
    with pytest.raises(DataError, match="phase=4"):
        read_header(folder, phase=4)


VENDORS: dict[str, tuple[dict[str, Any], str]] = {
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
        {
            "ImageType": lambda s, p: ["ORIGINAL", "PRIMARY", "MP"[p % 2]],
            "EchoTime": lambda s, p: 4.6 * (1 + p // 2),
        },
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
    assert_phases(volumes(made, tmp_path / "mr", Modality="MR", **tags), named)


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


def test_frames_of_a_multi_frame_file_are_distinguished_by_their_order(tmp_path, made):
    path = made.multiframe(tmp_path / "e.dcm", np.tile(made.positions(3), (2, 1)))
    with pytest.raises(DataError, match="2 phases"):
        read_header(path)
    assert read_volume(path, phase=1).image[0, 0, 0].tolist() == [(100 * k) * (k + 1) - 1000 for k in (3, 4, 5)]
