"""Metrics of the ISBI 2012 challenge: whether membranes separate the right cells in an electron micrograph.

Input is two-dimensional: a map of the cell interior (probability or mask) and the reference interior. The scores
compare *cells*, not pixels, so one missing pixel of membrane that merges two cells costs more than a thick membrane.

- `v_rand`, `v_info`: Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for
  connectomics, Frontiers in Neuroanatomy 9:142 (2015), alpha = 0.5; 1 is perfect.
- `warping_error`: Jain et al., Boundary learning by optimization with topological constraints, CVPR 2010; 0 is perfect.
- `pixel_error`: fraction of pixels that differ; 0 is perfect. (The leaderboard's "pixel error" is 1 - F-score.)

Details follow the challenge's own program (Fiji, Trainable_Segmentation, `RandError`, `VariationOfInformation`,
`WarpingError`): cells are 4-connected, so that a membrane of diagonal steps separates them; only the *proposal* is
thinned, because pixels of the reference's membrane are left out of the score (foreground restriction) however thick
it is; a pixel of the proposal's thin line inside a reference cell counts as a separate cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage, special
from skimage.segmentation import watershed

from medunet.errors import DataError

from .arrays import Array, ArrayOrTensor, as_pair

THRESHOLDS = tuple(step / 10 for step in range(10))  # of the challenge: 0.0, 0.1 ... 0.9


class EMScores(NamedTuple):
    """Scores of one slice, or means over slices; `warping_error` is None if it was not computed."""

    v_rand: float
    v_info: float
    pixel_error: float
    warping_error: float | None


class BestEMScores(NamedTuple):
    """The best mean over slices for any threshold, and that threshold."""

    v_rand: float
    v_rand_threshold: float
    v_info: float
    v_info_threshold: float


def em_scores(pred: ArrayOrTensor, ref: ArrayOrTensor, *, threshold: float = 0.5, warping: bool = True) -> EMScores:
    """Score one slice.

    Args:
        pred: interior of cells `(H, W)` or `(1, H, W)`: probabilities in [0, 1] or a mask of 0 and 1.
        ref: reference; nonzero is interior, zero is membrane.
        threshold: pixels of `pred` above it are interior.
        warping: also compute the warping error (the slowest of the four).

    Raises:
        GeometryError: shapes differ or are not two-dimensional.
        DataError: `pred` is not in [0, 1].

    Examples:
        >>> ref = np.ones((4, 7))
        >>> ref[:, 3] = 0  # a membrane between two cells
        >>> em_scores(ref, ref)
        EMScores(v_rand=1.0, v_info=1.0, pixel_error=0.0, warping_error=0.0)
        >>> merged = em_scores(np.ones((4, 7)), ref)  # sum p^2 = 1/2, sum s^2 = 1, sum t^2 = 1/2
        >>> round(merged.v_rand, 4), merged.v_info
        (0.6667, 0.0)
    """
    probability, interior_ref = _checked_pair(pred, ref)
    interior = probability > threshold
    counts = _count_pixels(thin_borders(interior), cells(interior_ref))
    return EMScores(
        v_rand=_v_rand(*counts),
        v_info=_v_info(*counts),
        pixel_error=float(np.mean(interior != interior_ref)),
        warping_error=warping_error(interior, interior_ref) if warping else None,
    )


def best_em_scores(preds: Sequence[ArrayOrTensor], refs: Sequence[ArrayOrTensor]) -> BestEMScores:
    """Score slices as the challenge does: mean over slices at each of `THRESHOLDS`, then the best threshold.

    Args:
        preds: probability maps of the interior, `(H, W)` each.
        refs: their references.

    Raises:
        DataError: no slices, or different numbers of predictions and references.
    """
    if not preds or len(preds) != len(refs):
        received = f"{len(preds)} predictions, {len(refs)} references"
        raise DataError("EM scores need one reference per prediction", received=received)
    scores = np.empty((len(THRESHOLDS), len(preds), 2))
    for column, (pred, ref) in enumerate(zip(preds, refs, strict=True)):
        probability, interior_ref = _checked_pair(pred, ref)
        cells_ref = cells(interior_ref)
        for row, threshold in enumerate(THRESHOLDS):
            counts = _count_pixels(thin_borders(probability > threshold), cells_ref)
            scores[row, column] = _v_rand(*counts), _v_info(*counts)
    means = scores.mean(axis=1)
    rand, info = (int(np.argmax(means[:, score])) for score in (0, 1))
    return BestEMScores(float(means[rand, 0]), THRESHOLDS[rand], float(means[info, 1]), THRESHOLDS[info])


def cells(interior: Array) -> Array:
    """Number the cells of a mask `(H, W)` from 1. They are 4-connected: a diagonal membrane separates them."""
    return np.asarray(ndimage.label(interior)[0])


def thin_borders(interior: Array) -> Array:
    """Number the cells of a mask `(H, W)` and grow them until one line of 0 is left between them.

    The growth is a watershed from the cells at equal speed; membrane that ends inside one cell vanishes:
    ```
    1 1 # # # 2        1 1 1 0 2 2
    1 1 # # # 2   ->   1 1 1 0 2 2
    ```
    """
    # on a flat image the flood is a breadth-first growth, so the line is in the middle of the membrane
    return np.asarray(watershed(np.zeros(interior.shape, np.uint8), cells(interior), watershed_line=True))


def _count_pixels(labels_pred: Array, labels_ref: Array) -> tuple[Array, Array, Array]:
    """Return pixels of the reference's cells: per pair of overlapping cells, per cell of each map.

    A membrane pixel of the proposal is a cell of its own.
    """
    foreground = labels_ref != 0
    pred, ref = labels_pred[foreground].astype(np.int64), labels_ref[foreground].astype(np.int64)
    membrane = pred == 0
    pred[membrane] = pred.max(initial=0) + 1 + np.arange(np.count_nonzero(membrane))
    pairs = pred * (ref.max(initial=0) + 1) + ref
    joint, in_pred, in_ref = (np.unique(numbers, return_counts=True)[1] for numbers in (pairs, pred, ref))
    return joint, in_pred, in_ref


def _v_rand(joint: Array, pred: Array, ref: Array) -> float:
    """Return 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2), in (0, 1]; NaN if the reference has no cell."""
    pairs, in_pred, in_ref = (float(np.sum(counts.astype(float) ** 2)) for counts in (joint, pred, ref))
    return 2 * pairs / (in_pred + in_ref) if ref.size else float("nan")


def _v_info(joint: Array, pred: Array, ref: Array) -> float:
    """Return 2 I(S; T) / (H(S) + H(T)), in [0, 1]; 1 for the same single cell; NaN if the reference has no cell."""
    if not ref.size:
        return float("nan")
    entropies = (float(special.entr(counts / counts.sum()).sum()) for counts in (joint, pred, ref))
    in_both, in_pred, in_ref = entropies
    return 2 * max(0.0, in_pred + in_ref - in_both) / (in_pred + in_ref) if in_pred + in_ref else 1.0


def warping_error(pred: Array, ref: Array) -> float:
    """Return the fraction of pixels of two masks `(H, W)` that differ after warping the reference towards the proposal.

    Warping flips pixels only where that changes no topology (`warp`), so a membrane that is too thick or shifted by
    up to its width costs nothing; merges, splits, lost and invented cells remain. Like Fiji's, the result is a local
    optimum: another order of flips can leave slightly more or fewer pixels (by definition, the fewest count).
    """
    return float(np.mean(warp(ref, pred) != pred))


def warp(source: Array, target: Array) -> Array:
    """Return the mask nearest to `target` that flipping simple points of `source` can reach, both `(H, W)`.

    A pixel is simple if its flip joins, splits, creates or removes no cell (4-connected) and no piece of membrane
    (8-connected). The search is greedy, one layer at a time, once with membrane first and once with cells first; the
    nearer result is returned. Pixels outside the image count as membrane.
    """
    warped = [_warp_in_order(source, target, first=first) for first in (False, True)]
    return min(warped, key=lambda mask: int(np.count_nonzero(mask != target)))


def _warp_in_order(source: Array, target: Array, *, first: bool) -> Array:
    """Flip a layer of pixels that become `first`, then a layer of those that do not, and so on."""
    mask, goal = np.pad(source, 1), np.pad(target, 1)
    width = mask.shape[1]
    flat, flat_goal = mask.ravel(), goal.ravel()
    # Around the pixel:    3 2 1
    #                      4 . 0
    #                      5 6 7
    ring = np.array([1, 1 - width, -width, -1 - width, -1, width - 1, width, width + 1])
    wrong = np.flatnonzero(flat != flat_goal)
    changed = True
    while changed:
        changed = False
        for becomes in (first, not first):
            layer = wrong[flat_goal[wrong] == becomes]
            layer = layer[_is_simple(flat[layer[:, None] + ring])]
            rows, columns = np.divmod(layer, width)
            # Pixels of one colour       0 1 0 1
            # are not neighbours, so     2 3 2 3
            # flipping them together     0 1 0 1
            # equals one after the other.
            colour = 2 * (rows % 2) + columns % 2
            for turn in range(4):
                flips = layer[colour == turn]
                flips = flips[_is_simple(flat[flips[:, None] + ring])]
                flat[flips] = becomes
                changed |= flips.size > 0
            wrong = wrong[flat[wrong] != flat_goal[wrong]]
    return mask[1:-1, 1:-1]


def _is_simple(ring: Array) -> Array:
    """Return for each ring of eight neighbours `(N, 8)` whether its centre is a simple point.

    Yokoi's connectivity number for 4-connected foreground, the sum over the four face neighbours x_k of x_k - x_k x_k+1
    x_k+2, counts the cells that meet at the pixel; if it is 1, the flip changes no topology.
    """
    crossings = np.zeros(len(ring), np.int8)
    for face in (0, 2, 4, 6):
        crossings += ring[:, face] & ~(ring[:, face + 1] & ring[:, (face + 2) % 8])
    return np.asarray(crossings == 1)


def _checked_pair(pred: ArrayOrTensor, ref: ArrayOrTensor) -> tuple[Array, Array]:
    """Return the probability map as floats and the reference's interior as a mask."""
    pred_array, ref_array = as_pair(pred, ref, spatial_dims=2)
    if pred_array.size and not (pred_array.min() >= 0 and pred_array.max() <= 1):  # NaN fails this, too
        received = f"values from {pred_array.min()} to {pred_array.max()}"
        raise DataError("prediction must be probabilities or a mask, with values in [0, 1]", received=received)
    return pred_array.astype(np.float32), ref_array != 0
