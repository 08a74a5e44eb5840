"""Metrics of objects, computed from one sparse table of the overlaps of two maps of object numbers.

`count_objects` returns counts that can be added over images; `object_scores` returns the scores of any such sum, so
that one function gives the scores of an image and those of a data set (pooled).

- Average precision, `ap_50` to `ap_95`: TP / (TP + FP + FN) at an intersection over union (IoU) of at least 0.50 to
  0.95, as in the Data Science Bowl 2018, StarDist and Cellpose; `mean_ap` is the mean over the ten thresholds.
- `f1`: 2 TP / (2 TP + FP + FN) at an IoU of at least 0.5.
- `pq`, `sq`, `rq`: panoptic, segmentation and recognition quality at an IoU above 0.5 (Kirillov et al., CVPR 2019).
- `aji`: aggregated Jaccard index (Kumar et al., IEEE TMI 36(7), 2017).
- `seg`, `det`: scores of the Cell Tracking Challenge (Maska et al., Bioinformatics 30(11), 2014; Matula et al., PLOS
  ONE 10(12), 2015), with the reference masks for both.
- `merged`: predicted objects that contain more than half of at least two reference objects. `split`: reference objects
  that contain more than half of at least two predicted ones. `missed` and `spurious`: objects of the reference and of
  the prediction without a partner at an IoU of 0.5 that take part in neither.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from medunet.errors import DataError

from .arrays import Array, ArrayOrTensor, as_pair

THRESHOLDS = tuple(range(50, 100, 5))  # IoU in percent
DIAMETERS = (0, 8, 16, 32, 64, 128)  # smallest diameter of each size of objects, in pixels of a disc or ball as large
SIZES = tuple(f"{low}-{high}" if high else f">={low}" for low, high in itertools.zip_longest(DIAMETERS, DIAMETERS[1:]))
LESION_IOU = 0.1  # of a lesion that counts as found, as in nnDetection (Baumgartner et al., MICCAI 2021)
DET_MERGE, DET_MISSED, DET_SPURIOUS = 5, 10, 1  # weights of the Cell Tracking Challenge's detection errors

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Overlaps:
    """Which objects of two maps overlap; `pred`, `ref` and `shared` have one entry per overlapping pair.

    Args:
        pred_ids: object numbers of the prediction, ascending.
        ref_ids: object numbers of the reference, ascending.
        pred_sizes: number of voxels of each predicted object.
        ref_sizes: number of voxels of each reference object.
        pred: index of the pair's predicted object.
        ref: index of the pair's reference object.
        shared: number of voxels that both have.
    """

    pred_ids: Ids
    ref_ids: Ids
    pred_sizes: Ids
    ref_sizes: Ids
    pred: Ids
    ref: Ids
    shared: Ids

    @cached_property
    def unions(self) -> Ids:
        """Number of voxels in the union of each pair."""
        return self.pred_sizes[self.pred] + self.ref_sizes[self.ref] - self.shared

    @cached_property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each pair."""
        return self.shared / self.unions

    @cached_property
    def contained(self) -> npt.NDArray[np.bool_]:
        """Whether the predicted object contains more than half of the reference object, for each pair."""
        return 2 * self.shared > self.ref_sizes[self.ref]

    @cached_property
    def is_merging(self) -> npt.NDArray[np.bool_]:
        """Whether each predicted object contains more than half of at least two reference objects."""
        return np.bincount(self.pred[self.contained], minlength=len(self.pred_ids)) > 1

    @cached_property
    def _is_piece(self) -> npt.NDArray[np.bool_]:
        return 2 * self.shared > self.pred_sizes[self.pred]

    @cached_property
    def is_split(self) -> npt.NDArray[np.bool_]:
        """Whether each reference object contains more than half of at least two predicted objects."""
        return np.bincount(self.ref[self._is_piece], minlength=len(self.ref_ids)) > 1

    def matches(self, threshold: float = 0.5) -> Ids:
        """Return the indices of the pairs of a one-to-one matching with an IoU of at least `threshold`, 0.5 or more."""
        pairs = np.flatnonzero(self.iou >= threshold)
        # at exactly 0.5, one object may equal the union of two; above it, no object has two partners
        pairs = pairs[np.unique(self.pred[pairs], return_index=True)[1]]
        return pairs[np.unique(self.ref[pairs], return_index=True)[1]]

    def is_missed(self) -> npt.NDArray[np.bool_]:
        """Return whether each reference object has no partner and is neither split nor merged."""
        merged = self.ref[self.contained & self.is_merging[self.pred]]
        return _others(len(self.ref_ids), self.ref[self.matches()], merged) & ~self.is_split

    def is_spurious(self) -> npt.NDArray[np.bool_]:
        """Return whether each predicted object has no partner and is neither merging nor a piece of a split object."""
        pieces = self.pred[self._is_piece & self.is_split[self.ref]]
        return _others(len(self.pred_ids), self.pred[self.matches()], pieces) & ~self.is_merging


def overlaps(pred: ArrayOrTensor, ref: ArrayOrTensor) -> Overlaps:
    """Return the overlaps of two maps of object numbers of the same shape; 0 is the background.

    Examples:
        >>> table = overlaps(np.array([[1, 1, 1, 7]]), np.array([[5, 5, 0, 6]]))
        >>> table.pred_ids.tolist(), table.ref_ids.tolist(), table.iou.round(2).tolist()
        ([1, 7], [5, 6], [0.67, 1.0])
    """
    pairs = as_pair(pred, ref)
    (pred_ids, pred_sizes, rows), (ref_ids, ref_sizes, columns) = (_indexed(labels) for labels in pairs)
    inside = (rows > 0) & (columns > 0)
    ones = np.ones(np.count_nonzero(inside), np.int64)
    shape = (len(pred_ids) + 1, len(ref_ids) + 1)
    table = sparse.coo_array((ones, (rows[inside], columns[inside])), shape=shape).tocsr().tocoo()
    first, second = (index.astype(np.int64) - 1 for index in table.coords)
    return Overlaps(pred_ids, ref_ids, pred_sizes, ref_sizes, first, second, table.data)


def count_objects(pred: ArrayOrTensor, ref: ArrayOrTensor) -> dict[str, float]:
    """Count what `object_scores` needs about two maps of object numbers; counts of several images may be added."""
    table, dims = overlaps(pred, ref), pred.ndim
    above_half = table.iou > 0.5
    counts: dict[str, float] = {"ref": len(table.ref_ids), "pred": len(table.pred_ids)}
    counts |= {f"found_{percent}": len(table.matches(percent / 100)) for percent in THRESHOLDS}
    counts |= {"recognised": int(above_half.sum()), "recognised_iou": float(table.iou[above_half].sum())}
    # AJI: the partner of a reference object is the predicted one with the greatest IoU; several may have the same
    order = np.lexsort((table.pred, -table.iou, table.ref))
    best = order[np.unique(table.ref[order], return_index=True)[1]]
    alone = _others(len(table.ref_ids), table.ref[best]), _others(len(table.pred_ids), table.pred[best])
    unpaired = table.ref_sizes[alone[0]].sum() + table.pred_sizes[alone[1]].sum()
    counts |= {"aji_shared": int(table.shared[best].sum()), "aji_union": int(table.unions[best].sum() + unpaired)}
    covered = np.bincount(table.pred[table.contained], minlength=len(table.pred_ids))
    counts |= {"seg_iou": float(table.iou[table.contained].sum()), "det_found": int(covered.sum())}
    counts |= {"det_spurious": int((covered == 0).sum()), "det_merges": int(np.maximum(covered - 1, 0).sum())}
    counts |= {"missed": int(table.is_missed().sum()), "spurious": int(table.is_spurious().sum())}
    counts |= {"merged": int(table.is_merging.sum()), "split": int(table.is_split.sum())}
    found = table.matches()
    ref_bins, pred_bins = _size_bins(table.ref_sizes, dims), _size_bins(table.pred_sizes, dims)
    unmatched = pred_bins[_others(len(table.pred_ids), table.pred[found])]
    for kind, bins in (("ref", ref_bins), ("found", ref_bins[table.ref[found]]), ("unmatched", unmatched)):
        numbers = np.bincount(bins, minlength=len(DIAMETERS))
        counts |= {f"{kind}_{name}": int(number) for name, number in zip(SIZES, numbers, strict=True)}
    return counts


def add_counts(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of counts of several images."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def object_scores(counts: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of counts; NaN without any object, and where a score divides by nothing.

    Examples:
        >>> scores = object_scores(count_objects(np.array([[1, 1, 1, 0]]), np.array([[1, 1, 0, 2]])))
        >>> scores["ap_50"], scores["f1"], round(scores["pq"], 3), scores["seg"], scores["missed"]
        (0.5, 0.6666666666666666, 0.444, 0.3333333333333333, 1)
    """
    ref, pred = counts["ref"], counts["pred"]
    precision = {
        f"ap_{percent}": _share(found := counts[f"found_{percent}"], ref + pred - found) for percent in THRESHOLDS
    }
    penalty = DET_MERGE * counts["det_merges"] + DET_MISSED * (ref - counts["det_found"])
    penalty += DET_SPURIOUS * counts["det_spurious"]
    return {
        "objects_ref": ref,
        "objects_pred": pred,
        "mean_ap": sum(precision.values()) / len(precision),
        **precision,
        "f1": _share(2 * counts["found_50"], ref + pred),
        "pq": _share(2 * counts["recognised_iou"], ref + pred),
        "sq": _share(counts["recognised_iou"], counts["recognised"]),
        "rq": _share(2 * counts["recognised"], ref + pred),
        "aji": _share(counts["aji_shared"], counts["aji_union"]),
        "seg": _share(counts["seg_iou"], ref),
        "det": 1 - min(1.0, _share(penalty, DET_MISSED * ref)) if ref else math.nan,
        **{error: counts[error] for error in ("missed", "spurious", "merged", "split")},
    }


def lesion_scores(pred: Array, ref: Array) -> dict[str, float]:
    """Return how well the lesions of a mask, its pieces that touch at most at a corner, are detected.

    A lesion is found if a predicted one has an IoU of at least `LESION_IOU` with it, one to one. `lesions_fp` is the
    number of predicted lesions without a partner. Sensitivity is NaN without a lesion in the reference, F1 without any.

    Examples:
        >>> scores = lesion_scores(np.array([1, 1, 0, 0, 1, 0, 1]), np.array([1, 0, 0, 0, 0, 0, 1]))
        >>> scores["lesions_fp"], scores["lesion_sensitivity"], scores["lesion_f1"]
        (1, 1.0, 0.8)
    """
    pieces = [ndimage.label(mask, np.ones((3,) * mask.ndim))[0] for mask in (pred, ref)]
    table = overlaps(*pieces)
    pairs, shape = table.iou >= LESION_IOU, (len(table.pred_ids), len(table.ref_ids))
    graph = sparse.csr_array((np.ones(pairs.sum()), (table.pred[pairs], table.ref[pairs])), shape=shape)
    found = int((sparse.csgraph.maximum_bipartite_matching(graph) >= 0).sum()) if pairs.any() else 0
    n_pred, n_ref = shape
    counts = {"lesions_ref": n_ref, "lesions_pred": n_pred, "lesions_fp": n_pred - found}
    return {**counts, "lesion_sensitivity": _share(found, n_ref), "lesion_f1": _share(2 * found, n_pred + n_ref)}


def scores_by_size(counts: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the number of reference objects, the share found at an IoU of 0.5 and `ap_50` by diameter in pixels.

    A reference object and its partner count for the reference's size, an unmatched prediction for its own.
    """
    sizes = {}
    for name in SIZES:
        ref, found, unmatched = (counts[f"{kind}_{name}"] for kind in ("ref", "found", "unmatched"))
        if ref or unmatched:
            sizes[name] = {"objects_ref": ref, "recall": _share(found, ref), "ap_50": _share(found, ref + unmatched)}
    return sizes


def _indexed(labels: Array) -> tuple[Ids, Ids, npt.NDArray[np.int32]]:
    """Return the object numbers, their sizes, and for each voxel the place of its number, from 1 (0: background)."""
    flat = labels.ravel()
    if flat.dtype.kind not in "iu":
        whole = flat.astype(np.int64)
        if not np.array_equal(whole, flat):
            raise DataError("object numbers must be whole")
        flat = whole
    if flat.size and flat.min() < 0:
        raise DataError("object numbers must not be negative", received=int(flat.min()))
    sizes = np.bincount(flat)
    sizes[:1] = 0
    ids = np.flatnonzero(sizes)
    places = np.zeros(len(sizes), np.int32)
    places[ids] = np.arange(1, len(ids) + 1)
    return ids, sizes[ids], places[flat]


def _others(count: int, *indices: Ids) -> npt.NDArray[np.bool_]:
    """Return a mask of `count` elements that is false at the indices."""
    mask = np.ones(count, bool)
    for index in indices:
        mask[index] = False
    return mask


def _size_bins(voxels: Ids, dims: int) -> npt.NDArray[np.intp]:
    """Return the index in `DIAMETERS` of objects by their number of voxels."""
    diameters = 2 * np.sqrt(voxels / np.pi) if dims < 3 else 2 * np.cbrt(0.75 * voxels / np.pi)
    return np.searchsorted(DIAMETERS, diameters, side="right") - 1


def _share(part: float, whole: float) -> Any:
    return part / whole if whole else math.nan
