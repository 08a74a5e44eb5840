"""Cases and their statistics."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError, DataError, GeometryError
from medunet.metrics import dice, evaluate_case, holm, paired_difference, summarise, write_tables

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def case():
    """Return a prediction and a reference: 8 of 12 voxels of the liver overlap, no spleen in either."""
    ref = np.zeros((5, 6, 7), int)
    ref[1:4, 1:3, 1:3] = 1
    pred = ref.copy()
    pred[3] = 0
    return pred, ref


def test_a_case_is_computed_by_hand():
    pred, ref = case()
    scores = evaluate_case(pred, ref, spacing_mm=(10, 2, 5), labels=LABELS, name="case_1")
    liver = scores["classes"]["liver"]
    assert liver["dice"] == 16 / 20
    assert liver["iou"] == 8 / 12
    assert liver["volume_pred_ml"] == pytest.approx(0.8)
    assert liver["volume_ref_ml"] == pytest.approx(1.2)
    # All voxels are surface; the 4 of the missing layer lie 10 mm away, the 16 others 0.
    assert liver["hd95_mm"] == pytest.approx(10.0)
    assert liver["msd_mm"] == pytest.approx(4 * 10 / 20)
    assert liver["status"] == "both"
    assert scores["name"] == "case_1"


def test_absent_classes_are_excluded_and_missed_and_spurious_ones_score_zero():
    scores = evaluate_case(*case(), spacing_mm=(1, 1, 1), labels=LABELS)
    assert scores["classes"]["spleen"]["status"] == "absent"
    assert math.isnan(scores["classes"]["spleen"]["dice"])
    assert scores["mean_dice"] == 0.8
    scores = evaluate_case(np.full((3, 3), 1), np.full((3, 3), 2), spacing_mm=(1, 1), labels=LABELS)
    results = [(scores["classes"][name]["status"], scores["classes"][name]["dice"]) for name in ("liver", "spleen")]
    assert results == [("spurious", 0.0), ("missed", 0.0)]
    assert scores["mean_dice"] == 0.0
    empty = np.zeros((3, 4, 5), int)
    scores = evaluate_case(empty, empty, spacing_mm=(1, 1, 1), labels=LABELS)
    assert math.isnan(scores["mean_dice"])
    assert math.isnan(dice(empty, empty))
    assert scores["classes"]["liver"]["volume_ref_ml"] == 0.0


@pytest.mark.parametrize("kind", [torch.tensor, MetaTensor])
def test_channels_and_tensors_change_nothing(kind):
    pred, ref = case()
    plain = evaluate_case(pred, ref, spacing_mm=(1, 2, 3), labels=LABELS)["classes"]["liver"]
    scores = evaluate_case(kind(pred)[None].float(), kind(ref)[None], spacing_mm=(1, 2, 3), labels=LABELS)
    assert scores["classes"]["liver"] == plain
    assert dice(kind(pred), kind(ref)) == plain["dice"]


def test_the_background_may_have_any_value():
    ref = np.full((4, 4), 255)
    ref[0] = 0
    scores = evaluate_case(ref, ref, spacing_mm=(1, 1), labels={"background": 255, "membrane": 0})
    assert list(scores["classes"]) == ["membrane"]
    assert scores["classes"]["membrane"]["area_ref_mm2"] == 4.0


def test_em_scores_use_the_interior():
    ref = np.full((8, 9), 255)
    ref[:, 4] = 0
    scores = evaluate_case(ref, ref, spacing_mm=(1, 1), labels={"background": 0, "cell": 255}, em=True)
    assert scores["em"] == {"v_rand": 1.0, "v_info": 1.0, "pixel_error": 0.0, "warping_error": 0.0}
    merged = np.full_like(ref, 255)
    named = evaluate_case(merged, ref, spacing_mm=(1, 1), labels={"background": 0, "cell": 255}, em="cell")
    assert named["em"]["v_rand"] == pytest.approx(2 / 3)  # sum p^2 = 1/2, sum s^2 = 1, sum t^2 = 1/2


PLANE, VOLUME = np.ones((3, 3), int), np.ones((3, 3, 3), int)


@pytest.mark.parametrize(
    ("pred", "ref", "options", "error", "cause"),
    [
        (PLANE, PLANE, {"em": True}, ConfigError, "em must name the class"),  # two classes
        (PLANE, PLANE, {"em": "kidney"}, ConfigError, "em must name the class"),
        (VOLUME, VOLUME, {"em": True, "labels": {"cell": 1}}, ConfigError, "EM scores need 2D"),
        (7 * PLANE, PLANE, {}, DataError, r"prediction.*received \[7\]"),
        (PLANE, PLANE[1:], {}, GeometryError, "different shapes"),
        (0 * PLANE, 0 * PLANE, {"labels": {"background": 0}}, ConfigError, "must have a class"),
    ],
)
def test_cases_that_cannot_be_scored_are_rejected(pred, ref, options, error, cause):
    with pytest.raises(error, match=cause):
        evaluate_case(pred, ref, **{"spacing_mm": (1,) * pred.ndim, "labels": LABELS, **options})


def test_statistics_exclude_nan_and_report_the_count():
    def scores(liver_pred: int, liver_ref: int) -> dict:
        pred, ref = np.zeros((10, 10), int), np.zeros((10, 10), int)
        pred.ravel()[:liver_pred] = 1
        ref.ravel()[:liver_ref] = 1
        return evaluate_case(pred, ref, spacing_mm=(1, 1), labels={"background": 0, "liver": 1})

    # Dice 1, 2 * 10 / 30 = 2/3, 0 (missed), NaN (absent)
    summary = summarise([scores(10, 10), scores(10, 20), scores(0, 5), scores(0, 0)])
    liver = summary["classes"]["liver"]
    assert liver["scores"]["dice"]["n"] == 3
    assert liver["scores"]["dice"]["mean"] == pytest.approx(5 / 9)
    assert liver["scores"]["dice"]["median"] == pytest.approx(2 / 3)
    assert liver["scores"]["dice"]["std"] == pytest.approx(np.std([1, 2 / 3, 0], ddof=1))
    assert liver["scores"]["hd95_mm"]["n"] == 2
    assert liver["status"] == {"both": 2, "missed": 1, "spurious": 0, "absent": 1}
    assert summary["cases"] == 4


def test_the_overall_dice_is_the_mean_over_classes_and_nan_without_cases():
    pred, ref = np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 2]])  # liver 2 * 2 / 5, spleen 2 * 1 / 3
    summary = summarise([evaluate_case(pred, ref, spacing_mm=(1, 1), labels=LABELS)])
    assert summary["mean_dice"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert math.isnan(summarise([])["mean_dice"])


def test_tables_have_a_row_per_case_and_class_and_empty_cells_for_nan(tmp_path):
    ref = np.zeros((6, 7), int)
    ref[1:4, 1:4] = 1
    results = [evaluate_case(ref, ref, spacing_mm=(1, 1), labels=LABELS, name=name) for name in ("a,b", 'c"d')]
    table, path = write_tables(results, tmp_path / "new" / "folder")
    document = json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert document["cases"][0]["classes"]["spleen"]["dice"] is None
    assert document["cases"][0]["classes"]["liver"]["dice"] == 1.0
    assert document["summary"]["mean_dice"] == 1.0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [(row["case"], row["class"]) for row in rows]
    assert labels == [(case, label) for case in ("a,b", 'c"d') for label in ("liver", "spleen")]
    assert rows[0]["area_ref_mm2"] == "9.0"
    assert (rows[1]["status"], rows[1]["hd95_mm"]) == ("absent", "")


def numbers(values: list[float]) -> dict[str, float]:
    return {f"case {place}": value for place, value in enumerate(values)}


def test_six_improved_cases_have_the_smallest_possible_p_value():
    result = paired_difference(numbers([0.0] * 6), numbers([1.0, 2, 3, 4, 5, 6]))
    assert result.differences == (1, 2, 3, 4, 5, 6)
    assert result.p_value == pytest.approx(2 / 2**6)  # all signs alike: 2 of 64 ways
    assert (result.better, result.worse, result.mean) == (6, 0, 3.5)
    assert result.low < 3.5 < result.high


def test_a_smaller_distance_is_better():
    result = paired_difference(numbers([3.0, 2.0, 1.0]), numbers([1.0, 2.0, 2.0]), higher_is_better=False)
    assert (result.better, result.worse) == (1, 1)


def test_only_cases_with_a_score_in_both_runs_are_compared():
    first = {"a": 0.5, "b": math.nan, "c": 0.7, "d": 0.9}
    second = {"c": 0.8, "b": 0.2, "a": math.nan, "e": 1.0}
    result = paired_difference(first, second)
    assert result.cases == ("c",)
    assert result.differences == pytest.approx((0.1,))


def test_too_few_cases_have_no_p_value_and_equal_runs_have_one():
    assert math.isnan(paired_difference(numbers([0.0] * 5), numbers([1.0, 2, 3, 4, 5])).p_value)
    assert paired_difference(numbers([0.5] * 9), numbers([0.5] * 9)).p_value == 1.0
    nothing = paired_difference({}, {})
    assert math.isnan(nothing.mean) and math.isnan(nothing.p_value)


def test_holms_correction_by_hand():
    assert holm([0.02, 0.005, 0.5]) == pytest.approx([0.04, 0.015, 0.5])
    assert holm([0.4, 0.3]) == pytest.approx([0.6, 0.6])
    assert holm([]) == []
