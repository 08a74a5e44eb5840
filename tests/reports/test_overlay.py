"""Overlays: the right plane, the right way up, in the right proportions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medunet.errors import ConfigError, GeometryError
from medunet.reports import class_colours, overlay_png, render_overlay
from medunet.reports.overlay import MAX_ASPECT, Plane, planes
from medunet.reports.view import window

LABELS = {"background": 0, "liver": 1, "spleen": 2}
RAS, LPS = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1])


def volume() -> tuple[np.ndarray, np.ndarray]:
    """Return an image and a label map of 9 x 11 x 13 voxels in RAS with a small and a large object."""
    pred = np.zeros((9, 11, 13), int)
    pred[6:8, 8:10, 10:12] = 1  # right, anterior, superior
    pred[1:5, 1:5, 2] = 2
    return np.random.default_rng(0).normal(size=pred.shape), pred


def planes_of(pred: np.ndarray, affine: np.ndarray | None, spacing: tuple[float, ...] = (1, 1, 1)) -> dict[str, Plane]:
    cut = planes([pred.astype(float), pred], affine, spacing, background=0)
    return {plane.title.split()[0]: plane for plane in cut}


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def pixels_of(picture: np.ndarray, colour: str) -> int:
    """Return how many pixels are nearly of a colour."""
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return int((np.abs(picture - wanted).max(axis=-1) < 12).sum())


def test_planes_lie_where_most_foreground_is() -> None:
    _, pred = volume()
    assert planes_of(pred, RAS)["axial"].title == "axial 2"
    assert (planes_of(pred, RAS)["axial"].pred == 2).sum() == 16


def test_the_patients_right_is_on_the_left_and_the_head_on_top() -> None:
    pred = np.zeros((9, 11, 13), int)
    pred[8, 10, 12] = 1  # the corner that is right, anterior and superior
    found = planes_of(pred, RAS)
    for name in ("axial", "coronal", "sagittal"):
        assert np.argwhere(found[name].pred).tolist() == [[0, 0]]


def test_the_order_of_the_files_axes_does_not_matter() -> None:
    _, pred = volume()
    expected = planes_of(pred, RAS)
    flipped = planes_of(pred[::-1, ::-1], LPS)
    # Axes stored as superior, right, anterior: voxel (i, j, k) lies at RAS (j, k, i).
    turned = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    moved = planes_of(np.moveaxis(pred, 2, 0), turned)
    for name, plane in expected.items():
        assert np.array_equal(flipped[name].pred, plane.pred)
        assert np.array_equal(moved[name].pred, plane.pred)


def test_spacing_follows_its_axis() -> None:
    _, pred = volume()
    turned = np.array([[0.0, 2, 0, 0], [0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 1]])
    found = planes_of(np.moveaxis(pred, 2, 0), turned, spacing=(5, 2, 3))
    assert (found["axial"].row_mm, found["axial"].column_mm) == (3, 2)
    assert (found["coronal"].row_mm, found["coronal"].column_mm) == (5, 2)
    assert (found["sagittal"].row_mm, found["sagittal"].column_mm) == (5, 3)
    assert found["sagittal"].aspect == pytest.approx(11 * 3 / (13 * 5))


def test_without_orientation_nothing_is_claimed_and_nothing_is_flipped() -> None:
    _, pred = volume()
    assert {(plane.left, plane.top) for plane in planes_of(pred, None).values()} == {("", "")}
    drawn = planes([pred.astype(float), pred], None, (1, 1, 1), background=0)[0]
    assert np.array_equal(drawn.pred, pred[:, :, 2].T)


def test_a_2d_picture_has_the_proportions_of_the_image() -> None:
    image = np.random.default_rng(0).random((35, 33))
    for spacing_mm, ratio in (((1.0, 1.0), 35 / 33), ((2.0, 1.0), 70 / 33), ((50.0, 1.0), MAX_ASPECT)):
        png = render_overlay(image, np.zeros((35, 33), int), labels=LABELS, spacing_mm=spacing_mm)
        height, width, _ = decoded(png).shape
        assert width / (height * 6.6 / (6.6 + 0.34)) == pytest.approx(ratio, rel=0.02)


def test_each_class_is_drawn_in_its_colour_and_the_reference_in_white(tmp_path: Path) -> None:
    image = np.zeros((35, 33))
    pred, ref = np.zeros((35, 33), int), np.zeros((35, 33), int)
    pred[5:15, 5:15], pred[18:30, 18:30] = 1, 2
    ref[3:9, 8:20] = 1
    colours = class_colours(["liver", "spleen"])
    assert colours["liver"] != colours["spleen"]
    # In the legend alone there are few pixels of a colour; the contours have hundreds.
    legend = decoded(render_overlay(image, np.zeros_like(pred), labels=LABELS, spacing_mm=(1, 1)))
    without = decoded(render_overlay(image, pred, labels=LABELS, spacing_mm=(1, 1)))
    path = overlay_png(image, pred, ref, path=tmp_path / "a.png", labels=LABELS, spacing_mm=(1, 1))
    with_reference = decoded(path.read_bytes())
    for colour in colours.values():
        assert pixels_of(without, colour) > pixels_of(legend, colour) + 300
    assert pixels_of(without, "#ffffff") < 100 < pixels_of(with_reference, "#ffffff")


def test_a_region_is_one_line_around_all_its_values() -> None:
    image, pred = np.zeros((33, 35)), np.zeros((33, 35), int)
    pred[5:25, 5:25], pred[10:20, 10:20] = 1, 2
    regions = {"background": 0, "whole": (1, 2)}
    found = render_overlay(image, pred, labels=regions, spacing_mm=(1, 1))
    assert np.array_equal(decoded(found), decoded(render_overlay(image, pred > 0, labels=regions, spacing_mm=(1, 1))))
    core = pixels_of(decoded(render_overlay(image, pred, labels={**regions, "core": 2}, spacing_mm=(1, 1))), "#3b9be0")
    assert core > pixels_of(decoded(found), "#3b9be0") + 300


def test_channels_and_metatensors_are_understood() -> None:
    image, pred = volume()
    plain = render_overlay(image, pred, labels=LABELS, affine=LPS)
    meta = MetaTensor(torch.tensor(np.stack([image * 0, image])), affine=torch.tensor(LPS))
    assert render_overlay(meta, torch.tensor(pred)[None], labels=LABELS, channel=1) == plain


@pytest.mark.parametrize("fill", [0, 1], ids=["nothing", "everything"])
def test_empty_full_and_flat_cases_can_be_drawn(fill: int) -> None:
    pred = np.full((5, 6, 7), fill)
    assert decoded(render_overlay(np.zeros(pred.shape), pred, pred, labels=LABELS, spacing_mm=(1, 1, 1))).size > 0


def test_the_window_leaves_extremes_out() -> None:
    image = np.linspace(0, 100, 10_000).reshape(100, 100)
    image[0, 0], image[0, 1] = 1e6, np.nan
    low, high = window(image)
    assert 0 <= low < 2
    assert 98 < high <= 101


def test_bad_arguments_are_errors() -> None:
    image, pred = volume()
    with pytest.raises(GeometryError, match="grid"):
        render_overlay(image, pred[1:], labels=LABELS)
    with pytest.raises(ConfigError, match="channel"):
        render_overlay(image[None], pred, labels=LABELS, channel=1)
    with pytest.raises(GeometryError):
        render_overlay(image[0, 0], pred[0, 0], labels=LABELS)


def test_forty_classes_have_forty_colours() -> None:
    colours = class_colours(f"class {place}" for place in range(40))
    assert len(set(colours.values())) == 40
