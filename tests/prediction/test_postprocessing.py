"""A rule is kept where it pays on cases that were not trained on, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medunet.io import read_volume, write_volume
from medunet.metrics import summarise
from medunet.prediction import Pair, choose_rules, evaluate_pairs

LABELS = {"background": 0, "liver": 5, "vessel": 9}
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def ball(centre: tuple[int, int, int], radius: float, shape: tuple[int, int, int] = (32, 32, 20)) -> np.ndarray:
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Livers are one ball, and predictions have false islands; vessels are two balls, rightly predicted."""
    found = []
    for case in range(4):
        ref = np.zeros((32, 32, 20), np.uint8)
        ref[ball((12, 12, 9), 6)] = 5
        ref[ball((27, 8, 8), 3)] = 9
        ref[ball((27, 26, 8), 2 + (case % 2))] = 9
        pred = ref.copy()
        pred[ball((5, 27 - case, 14), 1.5)] = 5
        files = [tmp_path / name / f"case_{case}.nii.gz" for name in ("pred", "ref")]
        for file, labels in zip(files, (pred, ref), strict=True):
            write_volume(labels, file, affine=AFFINE)
        found.append(Pair(f"case_{case}", *files))
    return found


def test_islands_go_and_second_parts_stay(pairs: list[Pair]) -> None:
    liver, vessel = choose_rules(pairs, LABELS)
    assert (liver.name, liver.index, liver.value) == ("liver", 1, 5)
    assert liver.is_kept
    assert liver.keep_largest  # the plainest rule that removes them
    assert liver.min_size == 0
    assert liver.dice_after == 1.0 > liver.dice_before
    assert (liver.better, liver.worse) == (4, 0)
    assert not vessel.is_kept
    assert vessel.dice_after == vessel.dice_before == 1.0


def test_the_promised_dice_is_that_of_the_cleaned_files(pairs: list[Pair]) -> None:
    rules = choose_rules(pairs, LABELS)
    before = summarise(list(evaluate_pairs(pairs, labels=LABELS)))
    after = summarise(list(evaluate_pairs(pairs, labels=LABELS, rules=rules)))
    for rule in rules:
        assert before["classes"][rule.name]["scores"]["dice"]["mean"] == pytest.approx(rule.dice_before, abs=1e-12)
        assert after["classes"][rule.name]["scores"]["dice"]["mean"] == pytest.approx(rule.dice_after, abs=1e-12)


def test_where_parts_are_real_a_smallest_size_is_found_instead(pairs: list[Pair]) -> None:
    # the island of the liver is also called vessel: the vessel has two real parts, so only its size tells
    labels = {"background": 0, "liver": 9, "vessel": 5}
    both = []
    for pair in pairs:
        for file in (pair.pred, pair.ref):
            volume = np.zeros((32, 32, 20), np.uint8)
            volume[ball((12, 12, 9), 6) | ball((27, 8, 8), 3)] = 5
            if file is pair.pred:
                volume[ball((5, 27, 14), 1.5)] = 5
            write_volume(volume, file, affine=AFFINE, overwrite=True)
        both.append(pair)
    rule = next(rule for rule in choose_rules(both, labels) if rule.value == 5)
    assert rule.is_kept
    assert not rule.keep_largest
    # 19 voxels of 2 mm³ are false, 123 are real
    assert 38 < rule.min_size < 246
    assert rule.dice_after == 1.0


def test_without_cases_nothing_is_kept() -> None:
    assert [rule.is_kept for rule in choose_rules([], LABELS)] == [False, False]


def test_islands_where_nothing_was_annotated_do_not_count(pairs: list[Pair]) -> None:
    for case, pair in enumerate(pairs):
        ref = np.asarray(read_volume(pair.ref).image[0]).copy()
        ref[ball((5, 27 - case, 14), 3)] = 255
        write_volume(ref, pair.ref, affine=AFFINE)
    liver, _ = choose_rules(pairs, LABELS, ignore=255)
    assert liver.dice_before == 1.0
    assert not liver.is_kept
