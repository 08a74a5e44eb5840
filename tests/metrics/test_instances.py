"""Scores of objects against hand-computed values, definitions written out, and published implementations."""

import itertools
import math

import numpy as np
import pytest
import tifffile
import torch
from monai.metrics import PanopticQualityMetric
from scipy import ndimage

from medunet.errors import ConfigError, DataError
from medunet.metrics import (
    add_counts,
    count_objects,
    evaluate_objects,
    object_scores,
    overlaps,
    summarise,
    write_tables,
)
from medunet.metrics.instances import scores_by_size

ONE_CLASS = {"background": 0, "object": 1}


def blobs(seed: int, shape=(60, 70), number: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Return objects, and a prediction of them with errors of all kinds, both with numbers that have gaps."""
    rng = np.random.default_rng(seed)
    points = np.zeros(shape, int)
    for label in range(1, number + 1):
        points[tuple(rng.integers(0, size) for size in shape)] = 3 * label
    distances, nearest = ndimage.distance_transform_edt(points == 0, return_indices=True)
    ref = np.where(distances < 7, points[tuple(nearest)], 0)
    pred = np.roll(ref, rng.integers(-1, 2, ref.ndim), axis=tuple(range(ref.ndim)))
    for label in np.unique(pred)[1:]:
        kind = rng.integers(6)
        if kind == 0:
            pred[pred == label] = 0
        elif kind == 1:
            pred[pred == label] = rng.choice(np.unique(pred)[1:])
        elif kind == 2:
            inside = np.argwhere(pred == label)
            pred[tuple(inside[: len(inside) // 2].T)] = 1000 + label
    return pred, ref


def written_out(pred: np.ndarray, ref: np.ndarray) -> dict[str, float]:
    """Return the scores from their definitions, with a mask per object."""
    preds, refs = ([labels == number for number in np.unique(labels)[1:]] for labels in (pred, ref))
    shared = np.array([[(one & two).sum() for two in refs] for one in preds])
    iou = np.array([[(one & two).sum() / (one | two).sum() for two in refs] for one in preds])
    scores = {}
    for percent in range(50, 100, 5):
        found = min((iou >= percent / 100).any(axis=axis).sum() for axis in (0, 1))
        scores[f"ap_{percent}"] = found / (len(preds) + len(refs) - found)
    found, matched = min((iou >= 0.5).any(axis=axis).sum() for axis in (0, 1)), iou[iou > 0.5]
    scores["f1"], scores["rq"] = (2 * count / (len(preds) + len(refs)) for count in (found, len(matched)))
    scores["pq"], scores["sq"] = 2 * matched.sum() / (len(preds) + len(refs)), matched.mean()
    used, inter, union = set(), 0, 0
    for column, mask in enumerate(refs):
        best = int(iou[:, column].argmax())
        if iou[best, column] == 0:
            union += mask.sum()
        else:
            used.add(best)
            inter, union = inter + shared[best, column], union + (preds[best] | mask).sum()
    union += sum(mask.sum() for index, mask in enumerate(preds) if index not in used)
    scores["aji"] = inter / union
    contained = shared > np.array([mask.sum() for mask in refs]) / 2
    scores["seg"] = np.where(contained, iou, 0).sum() / len(refs)
    per_pred = contained.sum(axis=1)
    cost = 5 * np.maximum(per_pred - 1, 0).sum() + 10 * (len(refs) - contained.sum()) + (per_pred == 0).sum()
    scores["det"] = 1 - min(cost, 10 * len(refs)) / (10 * len(refs))
    return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(60, 70), (14, 30, 35)])
def test_scores_equal_their_definitions(seed, shape):
    pred, ref = blobs(seed, shape)
    scores, expected = object_scores(count_objects(pred, ref)), written_out(pred, ref)
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    assert scores["mean_ap"] == pytest.approx(np.mean([scores[f"ap_{percent}"] for percent in range(50, 100, 5)]))
    assert 0 < scores["ap_50"] < 1  # the data have errors


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_that_of_monai(seed):
    pred, ref = blobs(seed)
    scores = object_scores(count_objects(pred, ref))
    both = (torch.tensor(np.stack([labels, labels > 0]))[None] for labels in (pred, ref))
    metric = PanopticQualityMetric(num_classes=1, metric_name=["pq", "sq", "rq"], smooth_numerator=0.0)
    metric(*both)
    assert [scores[key] for key in ("pq", "sq", "rq")] == pytest.approx([float(value) for value in metric.aggregate()])


def test_seg_and_det_of_frames_equal_those_of_the_cell_tracking_challenge(tmp_path):
    pytest.importorskip("ctc_metrics", reason="py-ctcmetrics is not installed")
    from ctc_metrics.metrics import det, seg
    from ctc_metrics.utils.representations import count_acyclic_graph_correction_operations, match

    frames, tracks, counts = [], ([], []), []
    for time in range(3):
        pred, ref = (np.where(labels, labels + 5000 * time, 0) for labels in blobs(time))
        counts.append(count_objects(pred, ref))
        for name, labels, found in zip(("ref.tif", "pred.tif"), (ref, pred), tracks, strict=True):
            tifffile.imwrite(tmp_path / name, labels.astype(np.uint16))
            found += [(label, time, time, 0) for label in np.unique(labels)[1:]]
        frames.append(match(str(tmp_path / "ref.tif"), str(tmp_path / "pred.tif")))
    labels_ref, labels_pred, mapped_ref, mapped_pred, ious = (list(column) for column in zip(*frames, strict=True))
    scores = object_scores(add_counts(counts))
    assert scores["seg"] == pytest.approx(seg(labels_ref, ious))
    operations = count_acyclic_graph_correction_operations(
        *(np.array(found) for found in tracks), labels_ref, labels_pred, mapped_ref, mapped_pred
    )
    assert operations["NS"] > 0
    assert scores["det"] == pytest.approx(det(**operations))


def test_merged_split_missed_and_spurious_objects_are_counted_by_hand():
    ref, pred = np.zeros((12, 30), int), np.zeros((12, 30), int)
    ref[1:4, 1:4], pred[1:4, 1:4] = 1, 4  # found
    ref[1:4, 8:11], ref[1:4, 11:14], pred[1:4, 8:14] = 2, 3, 5  # merged
    ref[1:4, 18:26], pred[1:4, 18:22], pred[1:4, 22:26] = 4, 6, 7  # split
    ref[7:10, 1:4] = 5  # missed
    pred[7:10, 8:11] = 8  # spurious
    ref[7:11, 18:22], pred[7:11, 21:25] = 6, 9  # too little overlap: missed and spurious
    table, scores = overlaps(pred, ref), object_scores(count_objects(pred, ref))
    assert table.pred_ids[table.is_merging].tolist() == [5]
    assert table.ref_ids[table.is_split].tolist() == [4]
    assert table.ref_ids[table.is_missed()].tolist() == [5, 6]
    assert table.pred_ids[table.is_spurious()].tolist() == [8, 9]
    assert [scores[key] for key in ("merged", "split", "missed", "spurious")] == [1, 1, 2, 2]
    # at exactly 0.5, one of the two halves counts as found: of the split object, and of the merged pair
    assert scores["ap_50"] == 3 / (6 + 6 - 3)
    assert scores["ap_55"] == 1 / (6 + 6 - 1)
    assert scores["rq"] == 1 / 6


def test_counts_of_images_add_up_to_those_of_the_images_side_by_side():
    pairs = [blobs(seed) for seed in range(3)]
    pooled = add_counts(itertools.starmap(count_objects, pairs))
    shifted = [[np.where(labels, labels + 5000 * place, 0) for labels in pair] for place, pair in enumerate(pairs)]
    together = count_objects(*(np.concatenate(labels) for labels in zip(*shifted, strict=True)))
    assert pooled == pytest.approx(together)
    assert object_scores(pooled) == pytest.approx(object_scores(together))


def test_objects_are_counted_by_their_diameter():
    ref, pred = np.zeros((50, 100), int), np.zeros((50, 100), int)
    ref[1:4, 1:4], ref[1:4, 10:13], pred[1:4, 10:13] = 1, 2, 9  # diameter 3.4: one missed, one found
    ref[5:45, 30:70], pred[5:45, 30:70] = 3, 8  # 45
    pred[5:17, 80:92] = 7  # 13.5, spurious
    sizes = scores_by_size(count_objects(pred, ref))
    assert sizes["0-8"] == {"objects_ref": 2, "recall": 0.5, "ap_50": 0.5}
    assert sizes["32-64"] == {"objects_ref": 1, "recall": 1.0, "ap_50": 1.0}
    assert (sizes["8-16"]["objects_ref"], sizes["8-16"]["ap_50"]) == (0, 0.0)
    assert len(sizes) == 3


def test_empty_maps_have_no_scores_and_invented_objects_score_zero():
    empty, full = np.zeros((5, 6), int), np.ones((5, 6), int)
    nothing = object_scores(count_objects(empty, empty))
    assert all(math.isnan(nothing[key]) for key in ("mean_ap", "f1", "pq", "aji", "seg", "det"))
    invented, lost = (object_scores(count_objects(*pair)) for pair in ((full, empty), (empty, full)))
    assert (invented["mean_ap"], invented["pq"], invented["aji"], invented["spurious"]) == (0, 0, 0, 1)
    assert (lost["mean_ap"], lost["seg"], lost["det"], lost["missed"]) == (0, 0, 0, 1)


def test_classes_are_scored_separately_and_summarised(tmp_path):
    labels = {"background": 0, "round": 1, "long": 5}
    ref = np.zeros((20, 20), int)
    ref[1:5, 1:5], ref[1:5, 10:14], ref[10:14, 1:5] = 1, 2, 3
    case = evaluate_objects(
        ref, ref, labels=labels, pred_classes={1: 1, 2: 5, 3: 5}, ref_classes={1: 1, 2: 1, 3: 5}, name="a"
    )
    assert case["classes"]["round"]["ap_50"] == 1 / 2  # object 2 is missed
    assert case["classes"]["long"]["ap_50"] == 1 / 2  # and spurious in the other class
    assert case["mean_ap"] == 0.5
    empty = evaluate_objects(0 * ref, 0 * ref, labels=labels, pred_classes={}, ref_classes={}, name="b")
    summary = summarise([case, empty])
    assert (summary["instances"], summary["cases"], summary["mean_ap"]) == (True, 2, 0.5)
    assert summary["classes"]["round"]["scores"]["ap_50"]["n"] == 1  # the image without objects has no score
    assert summary["objects"]["long"]["pooled"]["seg"] == 1.0
    text = write_tables([case, empty], tmp_path)[0].read_text()
    assert text.splitlines()[0].startswith("case,class,status,dice,iou,objects_ref,objects_pred,mean_ap,ap_50")
    assert "ref_" not in text.splitlines()[1]  # counts are in metrics.json only


@pytest.mark.parametrize(
    ("pred", "error", "cause"),
    [
        (np.full((3, 3), 0.5), DataError, "must be whole"),
        (np.full((3, 3), -1), DataError, "must not be negative"),
        (np.ones((3, 3), int), ConfigError, "need the class of each object"),
    ],
)
def test_maps_without_usable_objects_are_rejected(pred, error, cause):
    labels = {"background": 0, "a": 1, "b": 2} if error is ConfigError else ONE_CLASS
    with pytest.raises(error, match=cause):
        evaluate_objects(pred, np.ones((3, 3), int), labels=labels)
