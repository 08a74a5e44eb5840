"""Runs that are read back from MLflow."""

from __future__ import annotations

import pytest

from medunet.tracking import best_run
from medunet.tracking.runs import TrackedRun


def tracked(name: str, metrics: dict[str, float]) -> TrackedRun:
    return TrackedRun(name, name, "training", "FINISHED", 0, 1.0, {}, metrics, {})


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("val_dice_genioglossus", "high"),
        ("val_dice_loss", "high"),
        ("out_of_fold_iou_msd", "high"),
        ("loss", "low"),
        ("loss/dice", "low"),
        ("out_of_fold_hd95_mm_genioglossus", "low"),
        ("epoch_seconds", "low"),
        ("steps_per_second", "high"),
    ],
)
def test_whether_low_is_good_depends_on_the_metric_and_not_on_the_class(metric: str, best: str) -> None:
    runs = [tracked("low", {metric: 0.1}), tracked("high", {metric: 0.9})]
    assert best_run(runs, metric).name == best
