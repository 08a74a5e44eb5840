"""EM scores: merges and splits computed by hand, and the topology that warping must keep."""

import math

import numpy as np
import pytest
from scipy import ndimage

from medunet.errors import DataError, GeometryError
from medunet.metrics import best_em_scores, em_scores
from medunet.metrics.em import _is_simple, warp, warping_error

FOUR, EIGHT = ndimage.generate_binary_structure(2, 1), ndimage.generate_binary_structure(2, 2)


def three_cells() -> np.ndarray:
    """Return three cells of 5 x 3 pixels with membranes of one pixel between them."""
    interior = np.ones((5, 11), bool)
    interior[:, [3, 7]] = False
    return interior


def random_cells(seed: int, size: int = 65) -> np.ndarray:
    """Return a random interior with membranes of varying thickness."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    return np.abs(ndimage.gaussian_filter(noise, 3)) > 0.02


def test_a_perfect_proposal_scores_one_and_an_empty_reference_nan():
    assert em_scores(random_cells(0), random_cells(0)) == (1.0, 1.0, 0.0, 0.0)
    assert np.isnan(em_scores(np.ones((3, 3)), np.zeros((3, 3)))[:2]).all()  # no cell to score


def test_one_merge_is_computed_by_hand():
    ref = three_cells()
    pred = ref.copy()
    pred[:, 3] = True  # cells 1 and 2 become one
    scores = em_scores(pred, ref)
    # Each reference cell is 1/3 of the foreground:
    #   sum p^2 = 3 / 9, sum s^2 = (2/3)^2 + (1/3)^2 = 5 / 9, sum t^2 = 3 / 9  ->  2 * 3 / (5 + 3) = 3 / 4
    assert scores.v_rand == pytest.approx(3 / 4)
    # H(T) = ln 3, H(S) = ln 3 - 2/3 ln 2, and S follows from T, so I = H(S).
    entropy_ref, entropy_pred = math.log(3), math.log(3) - 2 / 3 * math.log(2)
    assert scores.v_info == pytest.approx(2 * entropy_pred / (entropy_pred + entropy_ref))
    assert scores.pixel_error == 5 / 55
    # Each of the five pixels parts the two cells from edge to edge: none can be flipped.
    assert scores.warping_error == pytest.approx(5 / 55)


def test_one_split_is_computed_by_hand():
    ref = np.zeros((5, 12), bool)
    ref[:, 0:5] = ref[:, 6:11] = True  # two cells of 25 pixels, n = 50
    ref[:, 11] = False
    pred = ref.copy()
    pred[:, 2] = False  # the first becomes 10 + 10 pixels and a line of 5
    scores = em_scores(pred, ref)
    # The line's pixels are cells of one pixel. In units of pixels^2:
    #   sum p^2 = sum s^2 = 10^2 + 10^2 + 5 * 1 + 25^2 = 830, sum t^2 = 2 * 25^2 = 1250
    assert scores.v_rand == pytest.approx(2 * 830 / (830 + 1250))
    # H(T) = ln 2; H(S) = 2 * 0.2 ln 5 + 5 / 50 ln 50 + 0.5 ln 2; T follows from S, so I = H(T).
    entropy_ref = math.log(2)
    entropy_pred = 0.4 * math.log(5) + 0.1 * math.log(50) + 0.5 * math.log(2)
    assert scores.v_info == pytest.approx(2 * entropy_ref / (entropy_pred + entropy_ref))
    # A membrane can grow from the image's edge (outside is membrane) until the last of the five pixels would cut.
    assert scores.warping_error == pytest.approx(1 / 60)


def test_a_thick_or_thin_membrane_costs_nothing():
    ref = np.ones((33, 35), bool)
    ref[:, 15:20] = False
    for half_width in (0, 1, 2, 5):
        pred = np.ones_like(ref)
        pred[:, 17 - half_width : 18 + half_width] = False
        scores = em_scores(pred, ref)
        assert scores.v_rand == scores.v_info == 1.0
        assert scores.warping_error == 0.0


def test_a_diagonal_membrane_separates_and_specks_within_a_cell_vanish():
    ref = ~np.eye(9, dtype=bool)
    assert em_scores(ref, ref)[:2] == (1.0, 1.0)
    assert em_scores(np.ones_like(ref), ref).v_info == 0.0  # the reference has two cells
    pred = np.ones((7, 9), bool)
    pred[:, 3:6] = False  # a membrane of three pixels
    pred[3, 7] = False  # and a speck inside a cell
    ref = np.arange(9)[None].repeat(7, 0) != 4
    assert em_scores(pred, ref)[:2] == (1.0, 1.0)


def test_the_best_threshold_is_selected():
    ref = three_cells()
    probability = np.where(ref, 0.95, 0.65)  # 0.7, 0.8 and 0.9 see the membrane, lower thresholds do not
    assert best_em_scores([probability, probability], [ref, ref]) == (1.0, 0.7, 1.0, 0.7)
    assert em_scores(probability, ref).v_info == 0.0


def test_simple_points_match_the_definition():
    # Bertrand & Malandain: exactly one cell (4-connected) touches the centre by a face, and exactly one piece of
    # membrane (8-connected) touches it at all.
    ring_at = [(1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]
    faces = [(1, 2), (0, 1), (1, 0), (2, 1)]
    for code in range(256):
        ring = np.array([bool(code >> bit & 1) for bit in range(8)])
        patch = np.zeros((3, 3), bool)
        for place, value in zip(ring_at, ring, strict=True):
            patch[place] = value
        outside = ~patch
        outside[1, 1] = False
        inside_pieces = ndimage.label(patch, FOUR)[0]
        outside_pieces = ndimage.label(outside, EIGHT)[0]
        simple = len({inside_pieces[f] for f in faces} - {0}) == 1 and outside_pieces.max() == 1
        assert _is_simple(ring[None])[0] == simple, patch


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_warping_keeps_the_topology_and_converges(seed: int):
    source, target = random_cells(seed), random_cells(seed + 50)
    warped = warp(source, target)

    def pieces(mask: np.ndarray) -> tuple[int, int]:
        outside = np.pad(~mask, 1, constant_values=True)
        return ndimage.label(mask, FOUR)[1], ndimage.label(outside, EIGHT)[1]

    assert pieces(warped) == pieces(source)
    assert np.mean(warped != target) < np.mean(source != target)
    assert np.array_equal(warp(warped, target), warped)


@pytest.mark.parametrize("start", [14, 15])
@pytest.mark.parametrize("shift", [-3, -2, 1, 3])
@pytest.mark.parametrize("wall", [True, False], ids=["membrane", "cell"])
def test_a_shift_within_the_membrane_width_has_no_warping_error(wall: bool, shift: int, start: int):
    ref, pred = np.ones((33, 34), bool), np.ones((33, 34), bool)
    ref[:, start : start + 3] = False
    pred[:, start + shift : start + shift + 3] = False
    assert warping_error(pred == wall, ref == wall) == 0.0
    ref[:] = False
    ref[10:20, 10:20] = True
    assert warping_error(np.zeros_like(ref), ref) == 1 / ref.size  # of a lost cell one pixel remains


@pytest.mark.parametrize("bad", [255.0, -0.5, math.nan])
def test_values_outside_0_to_1_are_rejected(bad: float):
    with pytest.raises(DataError, match="probabilities"):
        em_scores(np.array([[0, bad]]), np.ones((1, 2)))


def test_volumes_and_missing_slices_are_rejected():
    with pytest.raises(GeometryError):
        em_scores(np.ones((3, 3, 3)), np.ones((3, 3, 3)))
    with pytest.raises(DataError, match="need one reference"):
        best_em_scores([], [])
