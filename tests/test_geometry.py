import numpy as np
import pytest

from medunet.errors import GeometryError
from medunet.geometry import Geometry

AFFINE = np.array([[0, -2.0, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])


def changed(affine: np.ndarray, index: tuple[int, int], value: float) -> np.ndarray:
    affine = affine.copy()
    affine[index] = value
    return affine


def test_spacing_axes_and_shear_are_computed_from_the_columns():
    geometry = Geometry(AFFINE, (33, 34, 35))
    assert (geometry.spacing_mm, geometry.axis_codes) == ((3, 2, 4), "ALS")
    assert not geometry.is_sheared
    assert Geometry(changed(AFFINE, (1, 2), 1), (3, 3, 3)).is_sheared


def test_lps_has_the_opposite_x_and_y_and_converts_back():
    origin, spacing, direction = Geometry(AFFINE, (3, 4, 5)).to_lps()
    assert origin == (-5, -6, 7)
    again = Geometry.from_lps(origin=origin, spacing=spacing, direction=direction, shape=(3, 4, 5))
    assert np.allclose(again.affine, AFFINE)


def test_grids_are_compared_at_their_corners():
    angle = np.radians(0.1)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    # 0.1 degrees move a corner 10 voxels away by 0.02 voxel, one 500 voxels away by more than one
    assert Geometry(np.eye(4), (10, 10, 10)).is_close(Geometry(turned, (10, 10, 10)))
    assert not Geometry(np.eye(4), (500, 500, 10)).is_close(Geometry(turned, (500, 500, 10)))
    assert not Geometry(np.eye(4), (33, 34, 35)).is_close(Geometry(np.eye(4), (33, 34, 36)))
    other = changed(np.diag([1.0, 1.0, 7.0, 1.0]), (0, 3), 3)  # a 2D image does not use the third column
    assert Geometry(np.eye(4), (5, 6)).corner_distance_mm(Geometry(other, (5, 6))) == 3


@pytest.mark.parametrize(
    ("affine", "shape", "cause"),
    [
        (np.eye(3), (3, 3, 3), "4x4"),
        (changed(np.eye(4), (0, 3), np.nan), (3, 3, 3), "4x4 and finite"),
        (changed(np.eye(4), (1, 1), 0), (3, 3, 3), "spacing"),
        (changed(np.eye(4), (1, 1), 1e6), (3, 3, 3), "spacing"),
        (changed(np.eye(4), (3, 0), 1), (3, 3, 3), "last row"),
        (np.array([[1, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), (3, 3, 3), "singular"),
        (np.eye(4), (3,), "two or three axes"),
        (np.eye(4), (3, 0, 3), "two or three axes"),
    ],
)
def test_impossible_geometry_is_rejected(affine, shape, cause):
    with pytest.raises(GeometryError, match=cause):
        Geometry(affine, shape)


def test_the_text_tells_grids_apart_that_differ_in_their_place_only() -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    moved = affine.copy()
    moved[:3, 3] = (5, -7.25, 0)
    assert str(Geometry(moved, (4, 5, 6))) == (
        "shape (4, 5, 6), spacing (1.0, 2.0, 3.0) mm, axes RAS, first voxel at (5.0, -7.25, 0.0) mm"
    )
    assert str(Geometry(moved, (4, 5, 6))) != str(Geometry(affine, (4, 5, 6)))
