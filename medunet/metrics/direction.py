"""Which of two values of a metric is better."""

from __future__ import annotations

import re

LOWER_IS_BETTER = frozenset({"loss", "hd95", "msd", "seconds", "wait", "error", "warping"})
"""Words in the names of metrics whose lower values are better: losses, distances, times and errors."""

_OVERLAP = re.compile(r"(best_|kept_|out_of_fold_)*(val_)?(mean_)?(dice|iou)(_|$)")
"""Beginning of the names of overlap scores, which end with the name of a class."""


def lower_is_better(name: str) -> bool:
    """Return whether lower values of a metric are better, by its name in a table or in MLflow.

    Example:
        >>> [lower_is_better(name) for name in ("loss", "loss/dice", "out_of_fold_hd95_mm_liver", "epoch_seconds")]
        [True, True, True, True]
        >>> [lower_is_better(name) for name in ("val_mean_dice", "val_dice_loss_of_signal", "steps_per_second")]
        [False, False, False]
    """
    return not _OVERLAP.match(name) and not LOWER_IS_BETTER.isdisjoint(re.split(r"[_/]", name))
