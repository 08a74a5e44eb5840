"""Metrics of the ISBI 2012 challenge: do membranes separate the right cells in an electron micrograph?

Input is two-dimensional: a map of the cell interior (probability or mask) and the reference interior. Both scores
compare the *cells*, not the pixels, so one missing pixel of membrane that merges two cells costs more than a membrane
drawn too thick.

- `v_rand`, `v_info`: Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for
  connectomics, Frontiers in Neuroanatomy 9:142 (2015), alpha = 0.5; 1 is perfect.
- `warping_error`: Jain et al., Boundary learning by optimization with topological constraints, CVPR 2010; 0 is perfect.
- `pixel_error`: fraction of pixels that differ; 0 is perfect. (The leaderboard's "pixel error" is 1 - F-score of the
  same pixels.)

Details follow the challenge's own program (Fiji, Trainable_Segmentation, `RandError`, `VariationOfInformation`,
`WarpingError`): cells are 4-connected, so that a membrane of diagonal steps separates them; only the *proposal* is
thinned, because pixels of the reference's membrane are left out of the score (foreground restriction) however thick
it is; a pixel of the proposal's thin line that lies inside a reference cell counts as a cell of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from medunet.errors import DataError

from .arrays import Array, ArrayOrTensor, as_pair

SPATIAL_DIMS = 2

THRESHOLDS = tuple(step / 10 for step in range(10))
"""Thresholds 0.0, 0.1 ... 0.9 of the challenge; a pixel is interior where its probability is greater."""

FACES = ndimage.generate_binary_structure(SPATIAL_DIMS, 1)
"""4-connectivity: with 8 neighbours, two cells would join through the corners of a diagonal membrane."""


class EMScores(NamedTuple):
    """Scores of one slice, or means over slices; `warping_error` is None where it was not asked for."""

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
        ref: reference; what is not zero is interior, zero is membrane.
        threshold: a pixel of `pred` is interior where it is greater.
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
        DataError: no slices, no thresholds, or not as many predictions as references.
    """
    if not preds or not thresholds or len(preds) != len(refs):
        raise DataError(
            "slices cannot be scored",
            received=f"{len(preds)} predictions, {len(refs)} references, {len(thresholds)} thresholds",
            expected="as many predictions as references, at least one, and at least one threshold",
        )
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

    p_ij is the fraction of reference foreground in cell i of the proposal and cell j of the reference, s and t its
    sums.

    Args:
        labels_pred: cell numbers `(H, W)`; each pixel of 0 inside the reference's foreground counts as a cell of its
            own.
        labels_ref: cell numbers `(H, W)`; pixels of 0 are not scored.

    Returns:
        A number in (0, 1]; NaN where the reference has no foreground.
    """
    return _JointHistogram.of(*as_pair(labels_pred, labels_ref)).v_rand()


def v_info(labels_pred: ArrayOrTensor, labels_ref: ArrayOrTensor) -> float:
    """Return V_info of two maps of cell numbers, alpha = 0.5: 2 I(S; T) / (H(S) + H(T)); arguments as of `v_rand`.

    Returns:
        A number in [0, 1]; 1 where both hold the same single cell (0/0); NaN where the reference has no foreground.
    """
    return _JointHistogram.of(*as_pair(labels_pred, labels_ref)).v_info()


def cells(interior: Array) -> Array:
    """Number the 4-connected cells of an interior mask `(H, W)` from 1; membrane stays 0."""
    numbered, _ = ndimage.label(interior, structure=FACES)
    return np.asarray(numbered)


def thin_borders(interior: Array) -> Array:
    """Number the cells and let them grow into the membrane until one line of pixels is left between them.

    The growth is a watershed from the cells, at equal speed; membrane that ends inside one cell vanishes:
    ```
    1 1 # # # 2        1 1 1 0 2 2
    1 1 # # # 2   ->   1 1 1 0 2 2
    ```

    Args:
        interior: mask `(H, W)`, true inside cells.

    Returns:
        Cell numbers `(H, W)`, 0 on the line.
    """
    markers = cells(interior)
    # On a flat image the flood is a breadth-first growth, so the line lies in the middle of the membrane.
    return np.asarray(watershed(np.zeros(interior.shape, np.uint8), markers, connectivity=FACES, watershed_line=True))


def pixel_error(pred: ArrayOrTensor, ref: ArrayOrTensor, *, threshold: float = 0.5) -> float:
    """Return the fraction of pixels on the wrong side; arguments as of `em_scores`."""
    probability, interior_ref = _checked_pair(pred, ref)
    return float(np.mean((probability > threshold) != interior_ref))


def warping_error(pred: ArrayOrTensor, ref: ArrayOrTensor, *, threshold: float = 0.5) -> float:
    """Return the fraction of pixels that differ after the reference was warped towards the proposal.

    Warping flips pixels only where that changes no topology (`warp`), so a membrane that is too thick or shifted by
    up to its width costs nothing, and what remains are the merges, splits, lost and invented cells. Like Fiji's, the
    result is a local optimum: another order of flips can leave slightly more or fewer pixels (by definition, the
    fewest count).
    """
    probability, interior_ref = _checked_pair(pred, ref)
    interior = probability > threshold
    return float(np.mean(warp(interior_ref, interior) != interior))


def warp(source: Array, target: Array) -> Array:
    """Bring a mask as near to another as flips of simple points can.

    A pixel is simple when its flip joins, splits, makes or removes no cell (4-connected) and no piece of membrane
    (8-connected). The search is greedy, a layer at a time; membrane moves first or cells do, and the nearer result
    counts.

    Args:
        source: mask `(H, W)` to start from; outside the image counts as membrane.
        target: mask `(H, W)` to approach.

    Returns:
        A mask with the topology of `source`; no simple point of it differs from `target`.
    """
    target = target.astype(bool)
    warped = [_warp_in_order(source.astype(bool), target, first=first) for first in (False, True)]
    return min(warped, key=lambda mask: int(np.count_nonzero(mask != target)))


def _warp_in_order(source: Array, target: Array, *, first: bool) -> Array:
    """Warp by turns: a layer of pixels that shall become `first`, then a layer of those that shall not."""
    mask, goal = np.pad(source, 1), np.pad(target, 1)
    width = mask.shape[1]
    flat, flat_goal = mask.ravel(), goal.ravel()
    # Round the pixel:     3 2 1
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
            # are no neighbours, so      2 3 2 3
            # flipping them all at once  0 1 0 1
            # is the same as one after the other.
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

    Yokoi's connectivity number for 4-connected foreground, sum over the four face neighbours x_k of x_k - x_k x_k+1
    x_k+2, counts the cells that meet at the pixel; exactly one means that the flip changes no topology.
    """
    crossings = np.zeros(len(ring), np.int8)
    for face in (0, 2, 4, 6):
        crossings += ring[:, face] & ~(ring[:, face + 1] & ring[:, (face + 2) % 8])
    return np.asarray(crossings == 1)


class _JointHistogram(NamedTuple):
    """How often cell i of the proposal meets cell j of the reference, in reference foreground only."""

    pixels: int
    joint: Array
    """Pixels of each pair of cells that meet, without the proposal's membrane."""
    pred: Array
    """Pixels of each cell of the proposal."""
    ref: Array
    """Pixels of each cell of the reference."""
    singles: int
    """Pixels of the proposal's membrane: cells of one pixel each."""

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
    pred_array, ref_array = as_pair(pred, ref, spatial_dims=SPATIAL_DIMS)
    if pred_array.size and not (pred_array.min() >= 0 and pred_array.max() <= 1):  # NaN fails this, too
        raise DataError(
            "prediction is neither a probability map nor a mask",
            received=f"values from {pred_array.min()} to {pred_array.max()}",
            expected="values in [0, 1], 1 inside cells",
            remedy="apply the softmax, or compare with the interior's label value",
        )
    return pred_array.astype(np.float32), ref_array != 0
