"""Figures of one case: classes, their places, intensities, digests."""

import numpy as np
import pytest

from medunet.datasets.check.statistics import measure_case
from medunet.geometry import Geometry
from medunet.io import ReadRecord


def record(shape, affine=None, format="nifti") -> ReadRecord:
    return ReadRecord(path=None, format=format, geometry=Geometry(np.eye(4) if affine is None else affine, shape))


@pytest.fixture
def label() -> np.ndarray:
    label = np.zeros((1, 35, 9, 7), np.float32)
    label[0, 27:30, 2:4, 3] = 2  # centre at index 28: 11 voxels above the middle, 17
    return label


@pytest.mark.parametrize("value", [2, 70_000])
def test_classes_are_counted_and_located(label, value):
    label = np.where(label == 2, value, label)
    found = measure_case("a", label, record((35, 9, 7), np.diag([2.0, 1, 3, 1])), label)
    assert found.class_voxels == {0: 35 * 9 * 7 - 6, value: 6}
    assert found.class_right_mm == {value: pytest.approx(22.0)}
    assert found.voxel_size == pytest.approx(0.006)


def test_position_does_not_depend_on_the_order_of_axes(label):
    affine = np.array([[0, 0, -2, 5], [1, 0, 0, 6], [0, 3, 0, 7], [0, 0, 0, 1.0]])  # axes run A, S, L
    turned = np.moveaxis(label[0], 0, 2)[None]
    found = measure_case("a", turned, record((9, 7, 35), affine), turned)
    assert found.orientation == "ASL"
    assert found.class_right_mm == {2: pytest.approx(-22.0)}


def test_pictures_have_no_left_and_right(label):
    found = measure_case("a", label[..., 3], record((35, 9), format="png"), label[..., 3])
    assert found.class_voxels == {0: 35 * 9 - 6, 2: 6}
    assert (found.class_right_mm, found.orientation) == ({}, "")


def test_digest_depends_on_voxel_positions_and_not_on_axis_order():
    voxels = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
    flipped = record((5, 6, 7), np.diag([-1.0, 1, 1, 1]))
    first = measure_case("a", voxels, record((5, 6, 7)))
    same = measure_case("b", np.ascontiguousarray(voxels[:, ::-1]), flipped)
    mirrored = measure_case("c", voxels, flipped)
    assert first.image_digest == same.image_digest != mirrored.image_digest


def test_intensities_of_each_channel_are_measured():
    voxels = np.stack([np.arange(1001.0), np.full(1001, 3.0)]).reshape(2, 7, 11, 13).astype(np.float32)
    first, second = measure_case("a", voxels, record((7, 11, 13))).intensity
    assert (first.minimum, first.low, first.median, first.high, first.maximum) == (0, 5, 500, 995, 1000)
    assert (second.minimum, second.maximum, second.std) == (3, 3, 0)
