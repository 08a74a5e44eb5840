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

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from medunet.errors import DataError

from .arrays import Array, ArrayOrTensor, as_pair

THRESHOLDS = tuple(step / 10 for step in range(10))  # of the challenge: 0.0, 0.1 ... 0.9

FACES = ndimage.generate_binary_structure(2, 1)
"""4-connectivity: with 8 neighbours, two cells would join through the corners of a diagonal membrane."""


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

    Example:
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
    joint = _JointHistogram.of(thin_borders(interior), cells(interior_ref))
    return EMScores(
        v_rand=joint.v_rand(),
        v_info=joint.v_info(),
        pixel_error=float(np.mean(interior != interior_ref)),
        warping_error=warping_error(interior, interior_ref) if warping else None,
    )


def best_em_scores(
    preds: Sequence[ArrayOrTensor], refs: Sequence[ArrayOrTensor], *, thresholds: Sequence[float] = THRESHOLDS
) -> BestEMScores:
    """Score slices as the challenge does: mean over slices at each threshold, then the best threshold.

    Args:
        preds: probability maps of the interior, `(H, W)` each.
        refs: their references.
        thresholds: thresholds to try.

    Raises:
        DataError: no slices, no thresholds, or another number of predictions than of references.
    """
    if not preds or not thresholds or len(preds) != len(refs):
        received = f"{len(preds)} predictions, {len(refs)} references, {len(thresholds)} thresholds"
        raise DataError("EM scores need a reference per prediction, and a threshold", received=received)
    scores = np.empty((len(thresholds), len(preds), 2))
    for column, (pred, ref) in enumerate(zip(preds, refs, strict=True)):
        probability, interior_ref = _checked_pair(pred, ref)
        cells_ref = cells(interior_ref)
        for row, threshold in enumerate(thresholds):
            joint = _JointHistogram.of(thin_borders(probability > threshold), cells_ref)
            scores[row, column] = joint.v_rand(), joint.v_info()
    means = scores.mean(axis=1)
    rand, info = (int(np.argmax(means[:, score])) for score in (0, 1))
    return BestEMScores(float(means[rand, 0]), thresholds[rand], float(means[info, 1]), thresholds[info])


def v_rand(labels_pred: ArrayOrTensor, labels_ref: ArrayOrTensor) -> float:
    """Return V_rand of two maps of cell numbers, alpha = 0.5: 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2).

    p_ij is the fraction of reference foreground in cell i of the proposal and cell j of the reference; s and t are its
    sums.

    Args:
        labels_pred: cell numbers `(H, W)`; each pixel of 0 in the reference's foreground counts as a separate cell.
        labels_ref: cell numbers `(H, W)`; pixels of 0 are not scored.

    Returns:
        A number in (0, 1]; NaN if the reference has no foreground.
    """
    return _JointHistogram.of(*as_pair(labels_pred, labels_ref)).v_rand()


def v_info(labels_pred: ArrayOrTensor, labels_ref: ArrayOrTensor) -> float:
    """Return V_info of two maps of cell numbers, alpha = 0.5: 2 I(S; T) / (H(S) + H(T)).

    Args:
        labels_pred: cell numbers `(H, W)`; each pixel of 0 in the reference's foreground counts as a separate cell.
        labels_ref: cell numbers `(H, W)`; pixels of 0 are not scored.

    Returns:
        A number in [0, 1]; 1 if both have the same single cell (0/0); NaN if the reference has no foreground.
    """
    return _JointHistogram.of(*as_pair(labels_pred, labels_ref)).v_info()


def cells(interior: Array) -> Array:
    """Number the 4-connected cells of an interior mask `(H, W)` from 1; membrane stays 0."""
    numbered, _ = ndimage.label(interior, structure=FACES)
    return np.asarray(numbered)


def thin_borders(interior: Array) -> Array:
    """Number the cells of a mask `(H, W)` and grow them until one line of 0 is left between them.

    The growth is a watershed from the cells at equal speed; membrane that ends inside one cell vanishes:
    ```
    1 1 # # # 2        1 1 1 0 2 2
    1 1 # # # 2   ->   1 1 1 0 2 2
    ```
    """
    markers = cells(interior)
    # on a flat image the flood is a breadth-first growth, so the line is in the middle of the membrane
    return np.asarray(watershed(np.zeros(interior.shape, np.uint8), markers, connectivity=FACES, watershed_line=True))


def warping_error(pred: ArrayOrTensor, ref: ArrayOrTensor, *, threshold: float = 0.5) -> float:
    """Return the fraction of pixels that differ after warping the reference towards the proposal.

    Warping flips pixels only where that changes no topology (`warp`), so a membrane that is too thick or shifted by
    up to its width costs nothing; merges, splits, lost and invented cells remain. Like Fiji's, the result is a local
    optimum: another order of flips can leave slightly more or fewer pixels (by definition, the fewest count).
    """
    probability, interior_ref = _checked_pair(pred, ref)
    interior = probability > threshold
    return float(np.mean(warp(interior_ref, interior) != interior))


def warp(source: Array, target: Array) -> Array:
    """Return the mask nearest to `target` that flips of simple points of `source` reach, both `(H, W)`.

    A pixel is simple if its flip joins, splits, creates or removes no cell (4-connected) and no piece of membrane
    (8-connected). The search is greedy, one layer at a time, once with membrane first and once with cells first; the
    nearer result is returned. Pixels outside the image count as membrane.
    """
    target = target.astype(bool)
    warped = [_warp_in_order(source.astype(bool), target, first=first) for first in (False, True)]
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


class _JointHistogram(NamedTuple):
    """Numbers of pixels in the reference's foreground."""

    pixels: int
    joint: Array  # per pair of cells that overlap, without the proposal's membrane
    pred: Array  # per cell of the proposal
    ref: Array  # per cell of the reference
    singles: int  # of the proposal's membrane: cells of one pixel each

    @classmethod
    def of(cls, labels_pred: Array, labels_ref: Array) -> _JointHistogram:
        foreground = labels_ref != 0
        pred, ref = labels_pred[foreground].astype(np.int64), labels_ref[foreground].astype(np.int64)
        inside = pred != 0
        pairs = pred[inside] * (ref.max(initial=0) + 1) + ref[inside]
        return cls(
            pixels=int(ref.size),
            joint=np.unique(pairs, return_counts=True)[1],
            pred=np.unique(pred[inside], return_counts=True)[1],
            ref=np.unique(ref, return_counts=True)[1],
            singles=int(np.count_nonzero(~inside)),
        )

    def v_rand(self) -> float:
        if self.pixels == 0:
            return float("nan")
        # The factor 1 / pixels^2 of every fraction cancels; a single contributes 1^2 to its row and to its pair.
        joint, pred, ref = (float(np.sum(counts.astype(float) ** 2)) for counts in (self.joint, self.pred, self.ref))
        return 2 * (joint + self.singles) / (pred + self.singles + ref)

    def v_info(self) -> float:
        if self.pixels == 0:
            return float("nan")
        # Each single has the probability 1 / pixels, so -p log p = log(pixels) / pixels.
        from_singles = self.singles * np.log(self.pixels) / self.pixels
        entropy_pred = self._entropy(self.pred) + from_singles
        entropy_ref = self._entropy(self.ref)
        entropy_joint = self._entropy(self.joint) + from_singles
        if entropy_pred + entropy_ref == 0:
            return 1.0
        information = max(0.0, entropy_pred + entropy_ref - entropy_joint)
        return float(2 * information / (entropy_pred + entropy_ref))

    def _entropy(self, counts: Array) -> float:
        fractions = counts / self.pixels
        return float(-np.sum(fractions * np.log(fractions))) + 0.0


def _checked_pair(pred: ArrayOrTensor, ref: ArrayOrTensor) -> tuple[Array, Array]:
    """Return the probability map as floats and the reference's interior as a mask."""
    pred_array, ref_array = as_pair(pred, ref, spatial_dims=2)
    if pred_array.size and not (pred_array.min() >= 0 and pred_array.max() <= 1):  # NaN fails this, too
        raise DataError(
            "prediction must be a probability map or a mask with values in [0, 1]",
            received=f"values from {pred_array.min()} to {pred_array.max()}",
            remedy="apply the softmax, or compare with the interior's label value",
        )
    return pred_array.astype(np.float32), ref_array != 0
