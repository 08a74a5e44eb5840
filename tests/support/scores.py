"""Scores of small cases."""

from collections.abc import Mapping

import numpy as np

from medunet.metrics import CaseScores, evaluate_case

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def case(name: str, found: int, *, size: int = 10, spleen: int = 0, labels: Mapping[str, int] = LABELS) -> CaseScores:
    """Return scores of a case whose liver has `size` pixels, of which `found` are predicted; the spleen is perfect."""
    pred, ref = np.zeros((9, 12), int), np.zeros((9, 12), int)
    ref[4, :size], ref[7, :spleen] = 1, 2
    pred[4, :found], pred[7, :spleen] = 1, 2
    return evaluate_case(pred, ref, spacing_mm=(1, 1), labels=labels, name=name)


def em_case(name: str) -> CaseScores:
    """Return scores of a perfect electron microscopy case of two cells."""
    ref = np.full((8, 9), 255)
    ref[:, 4] = 0
    return evaluate_case(ref, ref, spacing_mm=(1, 1), labels={"background": 0, "cell": 255}, em=True, name=name)
