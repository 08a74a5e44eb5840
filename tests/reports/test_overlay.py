"""Overlays: the right plane, the right letters, the right proportions and colours."""

import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medunet.errors import GeometryError
from medunet.reports import class_colours, render_overlay
from medunet.reports.overlay import MAX_ASPECT, cut_planes

LABELS = {"background": 0, "liver": 1, "spleen": 2}
LPS = np.diag([-1.0, -1, 1, 1])


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def pixels_of(picture: np.ndarray, colour: str) -> int:
    """The number of pixels that are nearly of a colour."""
    return int((np.abs(picture - list(bytes.fromhex(colour[1:]))).max(axis=-1) < 12).sum())


def test_planes_are_where_most_foreground_is_with_the_patients_right_on_the_left() -> None:
    pred = np.zeros((9, 11, 13), int)
    pred[8, 10, 12] = 1  # the corner that is right, anterior and superior
    cut = cut_planes([pred.astype(float), pred], np.diag([1.0, 2, 3, 1]), None, 0)
    assert [plane.title for plane in cut] == ["axial 12", "coronal 10", "sagittal 8"]
    assert [(plane.left, plane.top) for plane in cut] == [("R", "A"), ("R", "S"), ("A", "S")]
    assert [(plane.row_mm, plane.column_mm) for plane in cut] == [(2, 1), (3, 1), (3, 2)]
    assert cut[2].aspect == pytest.approx(11 * 2 / (13 * 3))
    assert all(np.argwhere(plane.pred).tolist() == [[0, 0]] for plane in cut)
    # without orientation axes are only numbered
    cut = cut_planes([pred.astype(float), pred], None, (1, 1, 1), 0)
    assert (cut[0].left, cut[0].top, cut[0].title) == ("", "", "axis 2, slice 12")
    assert np.array_equal(cut[0].pred, pred[:, :, 12].T)


def test_a_2d_picture_has_the_proportions_of_the_image() -> None:
    image = np.random.default_rng(0).random((35, 33))
    for spacing_mm, ratio in (((1.0, 1.0), 35 / 33), ((2.0, 1.0), 70 / 33), ((50.0, 1.0), MAX_ASPECT)):
        png = render_overlay(image, np.zeros((35, 33), int), labels=LABELS, spacing_mm=spacing_mm)
        height, width, _ = decoded(png).shape
        assert width / (height * 6.6 / (6.6 + 0.34)) == pytest.approx(ratio, rel=0.02)


def test_each_class_is_drawn_in_its_colour_and_the_reference_in_white() -> None:
    image = np.zeros((35, 33))
    pred, ref = np.zeros((35, 33), int), np.zeros((35, 33), int)
    pred[5:15, 5:15], pred[18:30, 18:30] = 1, 2
    ref[3:9, 8:20] = 1
    # in the legend alone there are few pixels of a colour; the contours have hundreds
    legend = decoded(render_overlay(image, np.zeros_like(pred), labels=LABELS, spacing_mm=(1, 1)))
    without = decoded(render_overlay(image, pred, labels=LABELS, spacing_mm=(1, 1)))
    both = decoded(render_overlay(image, pred, ref, labels=LABELS, spacing_mm=(1, 1)))
    for colour in class_colours(["liver", "spleen"]).values():
        assert pixels_of(without, colour) > pixels_of(legend, colour) + 300
    assert pixels_of(without, "#ffffff") < 100 < pixels_of(both, "#ffffff")


def test_a_region_is_one_line_around_all_its_values() -> None:
    image, pred = np.zeros((33, 35)), np.zeros((33, 35), int)
    pred[5:25, 5:25], pred[10:20, 10:20] = 1, 2
    regions = {"background": 0, "whole": (1, 2)}
    found = decoded(render_overlay(image, pred, labels=regions, spacing_mm=(1, 1)))
    assert np.array_equal(found, decoded(render_overlay(image, pred > 0, labels=regions, spacing_mm=(1, 1))))
    core = decoded(render_overlay(image, pred, labels={**regions, "core": 2}, spacing_mm=(1, 1)))
    assert pixels_of(core, "#3b9be0") > pixels_of(found, "#3b9be0") + 300


def test_images_with_channels_and_metatensors_are_accepted() -> None:
    image, pred = np.random.default_rng(0).normal(size=(9, 11, 13)), np.zeros((9, 11, 13), int)
    pred[6:8, 8:10, 10:12], pred[1:5, 1:5, 2] = 1, 2
    plain = render_overlay(image, pred, labels=LABELS, affine=LPS)
    meta = MetaTensor(torch.tensor(np.stack([image, image * 0])), affine=torch.tensor(LPS))
    assert render_overlay(meta, torch.tensor(pred), labels=LABELS) == plain


@pytest.mark.parametrize("fill", [0, 1], ids=["nothing", "everything"])
def test_flat_cases_can_be_drawn_and_other_shapes_are_errors(fill: int) -> None:
    image, pred = np.zeros((5, 6, 7)), np.full((5, 6, 7), fill)
    assert decoded(render_overlay(image, pred, pred, labels=LABELS, spacing_mm=(1, 1, 1))).size > 0
    with pytest.raises(GeometryError, match="grid"):
        render_overlay(image, pred[1:], labels=LABELS)
    with pytest.raises(GeometryError, match="2 or 3 spatial axes"):
        render_overlay(image[0, 0], pred[0, 0], labels=LABELS)
