"""Surface distances: against every pair of points, against MONAI and DeepMind's surface-distance, and by hand."""

import math

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
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


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI 1.6.1 warns about itself
@pytest.mark.parametrize("shape", [(13, 15), (9, 11, 13)], ids=["2d", "3d"])
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_match_all_pairs_and_their_summaries_match_monai(seed: int, shape: tuple):
    pred, ref = blobs(seed, shape), blobs(seed + 10, shape)
    spacing_mm = SPACING_MM[: len(shape)]
    distances = surface_distances(pred, ref, spacing_mm=spacing_mm)
    for directed, expected in zip(distances, all_pairs(pred, ref, spacing_mm), strict=True):
        np.testing.assert_allclose(directed, expected, atol=1e-12)
    one_hot = {"y_pred": pred[None, None], "y": ref[None, None], "include_background": True}
    hd95 = float(compute_hausdorff_distance(**one_hot, percentile=95, spacing=list(spacing_mm)))
    mean = float(compute_average_surface_distance(**one_hot, symmetric=True, spacing=list(spacing_mm)))
    assert distances.hausdorff() == pytest.approx(hd95, rel=1e-5)
    assert distances.mean() == pytest.approx(mean, rel=1e-5)
    for tolerance in (0, 1.2, 3):
        tensors = {"y_pred": torch.as_tensor(pred)[None, None], "y": torch.as_tensor(ref)[None, None]}
        nsd = compute_surface_dice(
            **tensors, class_thresholds=[tolerance], include_background=True, spacing=list(spacing_mm)
        )
        assert distances.share_within(tolerance) == pytest.approx(float(nsd), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # surface-distance 0.1 with SciPy 1.17
@pytest.mark.parametrize(("shape", "spacing_mm"), [((31, 35), (0.7, 1.1)), ((29, 31, 33), SPACING_MM)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surface_distance_differs_by_less_than_a_voxel(
    seed: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> None:
    """Its surface lies between voxels and is weighted by area, so small tolerances give other shares."""
    first, other = (
        ndimage.gaussian_filter(np.random.default_rng(n).normal(size=shape), 4, mode="constant") > 0.004
        for n in (seed, seed + 5)
    )
    pred, ref = first, ndimage.binary_dilation(first) ^ (other & first)
    oracle = surface_distance.compute_surface_distances(ref, pred, spacing_mm)
    found = surface_distances(pred, ref, spacing_mm=spacing_mm)
    hd95 = surface_distance.compute_robust_hausdorff(oracle, 95)
    assert found.hausdorff() == pytest.approx(hd95, abs=np.linalg.norm(spacing_mm) / 2)
    for voxels in (2, 3):
        expected = surface_distance.compute_surface_dice_at_tolerance(oracle, voxels * max(spacing_mm))
        assert found.share_within(voxels * max(spacing_mm)) == pytest.approx(expected, abs=0.02)


def test_the_mean_is_over_the_voxels_of_both_surfaces():
    pred, ref = np.zeros((3, 20), bool), np.zeros((3, 20), bool)
    ref[1, 4:6] = True  # distances 0, 1
    pred[1, [4, 14]] = True  # distances 0, 9
    distances = surface_distances(pred, ref, spacing_mm=(1, 1))
    assert distances.mean() == (0 + 1 + 0 + 9) / 4
    assert distances.hausdorff(percentile=100) == 9


def test_a_missing_surface_has_no_distance():
    empty, full = np.zeros((5, 5)), np.ones((5, 5))
    for pred, ref in ((empty, full), (full, empty), (empty, empty)):
        distances = surface_distances(pred, ref, spacing_mm=(1, 1))
        assert math.isnan(distances.hausdorff())
        assert math.isnan(distances.mean())


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_invalid_spacing_is_rejected(spacing_mm: tuple[float, ...]):
    with pytest.raises(GeometryError, match=r"axes|one per axis"):
        surface_distances(np.ones((3, 3)), np.ones((3, 3)), spacing_mm=spacing_mm)
