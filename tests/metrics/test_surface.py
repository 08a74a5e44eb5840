"""Surface distances: against every pair of points, against MONAI, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage

from medunet.errors import GeometryError
from medunet.metrics import surface_distances

SPACING_MM = (3.0, 0.7, 1.1)


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return a random mask of a few smooth pieces, some of which touch the image's edge."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 1.5, mode="nearest") > 0.12


def all_pairs(pred: np.ndarray, ref: np.ndarray, spacing_mm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return both directed distances from the table of all pairs of surface voxels."""

    def points(mask: np.ndarray) -> np.ndarray:
        inside = {tuple(index) for index in np.argwhere(mask)}
        steps = np.vstack([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])
        surface = [index for index in inside if any(tuple(np.add(index, step)) not in inside for step in steps)]
        return np.array(sorted(surface)) * np.array(spacing_mm)

    table = np.linalg.norm(points(pred)[:, None] - points(ref)[None], axis=-1)
    return table.min(axis=1), table.min(axis=0)


@pytest.mark.parametrize("shape", [(13, 15), (9, 11, 13)], ids=["2d", "3d"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_distance_is_the_shortest_of_all_pairs(seed: int, shape: tuple[int, ...]) -> None:
    pred, ref = blobs(seed, shape), blobs(seed + 10, shape)
    spacing_mm = SPACING_MM[: len(shape)]
    distances = surface_distances(pred, ref, spacing_mm=spacing_mm)
    for directed, expected in zip(distances, all_pairs(pred, ref, spacing_mm), strict=True):
        np.testing.assert_allclose(directed, expected, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI 1.6.1 warns about itself
@pytest.mark.parametrize("shape", [(33, 34), (17, 18, 19)], ids=["2d", "3d"])
def test_hd95_and_mean_are_monais(shape: tuple[int, ...]) -> None:
    pred, ref = blobs(3, shape), blobs(4, shape)
    spacing_mm = SPACING_MM[: len(shape)]
    one_hot = {"y_pred": pred[None, None], "y": ref[None, None], "include_background": True}
    hd95 = float(compute_hausdorff_distance(**one_hot, percentile=95, spacing=list(spacing_mm)))
    mean = float(compute_average_surface_distance(**one_hot, symmetric=True, spacing=list(spacing_mm)))
    distances = surface_distances(pred, ref, spacing_mm=spacing_mm)
    assert distances.hausdorff() == pytest.approx(hd95, rel=1e-5)
    assert distances.mean() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_of_a_plane_is_measured_with_the_spacing_of_its_axis(axis: int) -> None:
    pred, ref = np.zeros((11, 11, 11), bool), np.zeros((11, 11, 11), bool)
    np.moveaxis(ref, axis, 0)[3] = True
    np.moveaxis(pred, axis, 0)[5] = True
    distances = surface_distances(pred, ref, spacing_mm=SPACING_MM)
    assert distances.hausdorff() == pytest.approx(2 * SPACING_MM[axis])
    assert distances.mean() == pytest.approx(2 * SPACING_MM[axis])


def test_the_mean_is_over_the_voxels_of_both_surfaces() -> None:
    pred, ref = np.zeros((1, 20), bool), np.zeros((1, 20), bool)
    ref[0, 0:2] = True  # distances 0, 1
    pred[0, [0, 10]] = True  # distances 0, 9
    distances = surface_distances(pred, ref, spacing_mm=(1, 1))
    assert distances.mean() == (0 + 1 + 0 + 9) / 4
    assert distances.hausdorff(percentile=100) == 9


def test_a_missing_surface_has_no_distance() -> None:
    empty, full = np.zeros((5, 5)), np.ones((5, 5))
    for pred, ref in ((empty, full), (full, empty), (empty, empty)):
        distances = surface_distances(pred, ref, spacing_mm=(1, 1))
        assert math.isnan(distances.hausdorff())
        assert math.isnan(distances.mean())


def test_padding_changes_nothing() -> None:
    pred, ref = blobs(5, (9, 9)), blobs(6, (9, 9))
    near = surface_distances(pred, ref, spacing_mm=(1, 2))
    far = surface_distances(np.pad(pred, ((20, 3), (1, 40))), np.pad(ref, ((20, 3), (1, 40))), spacing_mm=(1, 2))
    np.testing.assert_allclose(near.pred_to_ref, far.pred_to_ref, atol=1e-12)


def test_spacing_of_another_length_is_rejected() -> None:
    with pytest.raises(GeometryError, match="axes"):
        surface_distances(np.ones((3, 3)), np.ones((3, 3)), spacing_mm=(1, 1, 1))
