from __future__ import annotations

import numpy as np
import pytest

from medunet.errors import GeometryError
from medunet.geometry import Geometry, flip_ras_lps


def test_spacing_axes_and_shear_are_those_of_the_columns():
    affine = np.array([[0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    geometry = Geometry(affine, (33, 34, 35))
    assert geometry.spacing_mm == (3, 2, 4)
    assert geometry.axis_codes == "ALS"
    assert not geometry.is_sheared
    affine[1, 2] = 1
    assert Geometry(affine, (3, 3, 3)).is_sheared


def test_flipping_twice_changes_nothing():
    affine = np.random.default_rng(1).standard_normal((4, 4))
    assert np.array_equal(flip_ras_lps(flip_ras_lps(affine)), affine)
    assert flip_ras_lps(np.eye(4)).diagonal().tolist() == [-1, -1, 1, 1]


def test_lps_round_trip_keeps_the_affine():
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    origin, spacing, direction = Geometry(affine, (3, 4, 5)).to_lps()
    assert origin == (-5, -6, 7)
    again = Geometry.from_lps(origin=origin, spacing=spacing, direction=direction, shape=(3, 4, 5))
    assert np.allclose(again.affine, affine)


def test_a_rotation_counts_at_the_far_corner():
    angle = np.radians(0.1)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    # 0.1 degrees move a corner 10 voxels away by 0.02 voxel, one 500 voxels away by more than one
    assert Geometry(np.eye(4), (10, 10, 10)).is_close(Geometry(turned, (10, 10, 10)))
    assert not Geometry(np.eye(4), (500, 500, 10)).is_close(Geometry(turned, (500, 500, 10)))
    assert not Geometry(np.eye(4), (33, 34, 35)).is_close(Geometry(np.eye(4), (33, 34, 36)))


def test_corner_distance_in_the_plane_ignores_the_third_column():
    other = np.diag([1.0, 1.0, 7.0, 1.0])
    assert Geometry(np.eye(4), (5, 6)).corner_distance_mm(Geometry(other, (5, 6))) == 0
    other[0, 3] = 3
    assert Geometry(np.eye(4), (5, 6)).corner_distance_mm(Geometry(other, (5, 6))) == 3


def test_affine_is_a_copy_and_read_only():
    affine = np.eye(4)
    geometry = Geometry(affine, (3, 3, 3))
    affine[0, 0] = 9
    assert geometry.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 2


def _changed(index: tuple[int, int], value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[index] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "shape", "cause"),
    [
        (np.eye(3), (3, 3, 3), "4x4"),
        (_changed((0, 3), np.nan), (3, 3, 3), "must be finite"),
        (_changed((1, 1), 0), (3, 3, 3), "spacing"),
        (_changed((1, 1), 1e6), (3, 3, 3), "spacing"),
        (_changed((3, 0), 1), (3, 3, 3), "last row"),
        (np.array([[1, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), (3, 3, 3), "singular"),
        (np.eye(4), (3,), "two or three axes"),
        (np.eye(4), (3, 0, 3), "two or three axes"),
    ],
)
def test_impossible_geometry_is_rejected(affine, shape, cause):
    with pytest.raises(GeometryError, match=cause):
        Geometry(affine, shape)
