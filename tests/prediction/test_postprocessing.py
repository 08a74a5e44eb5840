"""Rules that clean label maps are used only if they raise the Dice of held-out cases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.io import read_volume, write_volume
from medunet.metrics import summarise
from medunet.prediction import ClassRule, Pair, choose_region_rules, choose_rules, evaluate_pairs

LABELS = {"background": 0, "liver": 5, "vessel": 9}
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def ball(centre: tuple[int, int, int], radius: float, shape: tuple[int, int, int] = (32, 32, 20)) -> np.ndarray:
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def write_pairs(folder: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Pair]:
    written = []
    for case, (pred, ref) in enumerate(pairs):
        files = [folder / name / f"case_{case}.nii.gz" for name in ("pred", "ref")]
        for file, labels in zip(files, (pred, ref), strict=True):
            write_volume(labels.astype(np.uint8), file, affine=AFFINE, overwrite=True)
        written.append(Pair(f"case_{case}", *files))
    return written


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Livers are one ball, and predictions have false islands; vessels are two balls, predicted exactly."""
    cases = []
    for case in range(4):
        ref = 5 * ball((12, 12, 9), 6)
        ref[ball((27, 8, 8), 3) | ball((27, 26, 8), 2 + (case % 2))] = 9
        cases.append((np.where(ball((5, 27 - case, 14), 1.5), 5, ref), ref))
    return write_pairs(tmp_path, cases)


def test_islands_are_removed_and_real_second_components_stay(pairs: list[Pair]) -> None:
    liver, vessel = choose_rules(pairs, LABELS)
    assert (liver.name, liver.index, liver.value) == ("liver", 1, 5)
    assert liver.is_kept
    assert liver.keep_largest  # the plainest rule that removes them
    assert liver.min_size == 0
    assert liver.dice_after == 1.0 > liver.dice_before
    assert (liver.better, liver.worse) == (4, 0)
    assert not vessel.is_kept
    assert vessel.dice_after == vessel.dice_before == 1.0
    assert_reported_dice([liver, vessel], pairs, labels=LABELS)


def assert_reported_dice(rules: list[ClassRule], pairs: list[Pair], **options: Any) -> None:
    """Compare the Dice of rules with that of the cleaned files."""
    before = summarise(list(evaluate_pairs(pairs, **options)))
    after = summarise(list(evaluate_pairs(pairs, **options, rules=rules)))
    for rule in rules:
        assert before["classes"][rule.name]["scores"]["dice"]["mean"] == pytest.approx(rule.dice_before, abs=1e-12)
        assert after["classes"][rule.name]["scores"]["dice"]["mean"] == pytest.approx(rule.dice_after, abs=1e-12)


def test_a_minimum_size_is_chosen_if_several_components_are_real(tmp_path: Path) -> None:
    ref = 5 * (ball((12, 12, 9), 6) | ball((27, 8, 8), 3))
    pairs = write_pairs(tmp_path, [(np.where(ball((5, 27, 14), 1.5), 5, ref), ref)] * 4)
    rule, _ = choose_rules(pairs, LABELS)
    assert rule.is_kept
    assert not rule.keep_largest
    # 19 voxels of 2 mm³ are false, 123 are real
    assert 38 < rule.min_size < 246
    assert rule.dice_after == 1.0


def test_without_cases_no_rule_is_used() -> None:
    assert [rule.is_kept for rule in choose_rules([], LABELS)] == [False, False]


def test_islands_in_ignored_voxels_are_disregarded(pairs: list[Pair]) -> None:
    for case, pair in enumerate(pairs):
        ref = np.asarray(read_volume(pair.ref).image[0]).copy()
        ref[ball((5, 27 - case, 14), 3)] = 255
        write_volume(ref, pair.ref, affine=AFFINE)
    liver, _ = choose_rules(pairs, LABELS, ignore=255)
    assert liver.dice_before == 1.0
    assert not liver.is_kept


REGIONS = {"whole": [1, 2, 5], "core": [2, 5], "enhancing": [5]}
ORDER = [1, 2, 5]
REGION_LABELS = {"background": 0, "label_1": 1, "label_2": 2, "enhancing": 5}


@pytest.fixture
def tumours(tmp_path: Path) -> list[Pair]:
    """Tumours are balls within balls; predictions have a false tumour, and a false core within the true one."""
    cases = []
    for case in range(3):
        ref = np.zeros((32, 32, 20))
        for value, radius in ((1, 8), (2, 4), (5, 2)):
            ref[ball((12, 12, 9), radius)] = value
        pred = ref.copy()
        for value, radius in ((1, 3), (2, 2), (5, 1)):
            pred[ball((27, 27 - case, 14), radius)] = value
        pred[ball((12, 19, 9), 1)] = 2
        cases.append((pred, ref))
    return write_pairs(tmp_path, cases)


def test_false_regions_are_removed_and_those_around_them_are_not(tumours: list[Pair]) -> None:
    rules = choose_region_rules(tumours, REGION_LABELS, REGIONS, order=ORDER)
    whole, core, enhancing = rules
    assert (whole.name, whole.index, whole.value) == ("whole", 0, 1)
    assert whole.is_kept and core.is_kept
    assert not enhancing.is_kept  # its false part went with the false tumour
    assert enhancing.dice_before < enhancing.dice_after == 1.0
    assert whole.dice_after == core.dice_after == 1.0
    assert_reported_dice(rules, tumours, labels=REGION_LABELS, regions=REGIONS)


def test_a_rule_that_would_damage_a_contained_region_is_not_used(tmp_path: Path) -> None:
    """The second tumour is wrong except for its enhancing core, which the first one lacks."""
    ref = np.where(ball((27, 26, 14), 1), 5, ball((12, 12, 9), 8))
    pred = np.where((ref == 0) & ball((27, 26, 14), 3), 1, ref)
    rules = choose_region_rules(write_pairs(tmp_path, [(pred, ref)] * 3), REGION_LABELS, REGIONS, order=ORDER)
    assert not any(rule.is_kept for rule in rules)


def test_regions_without_their_own_value_have_no_rule(tumours: list[Pair]) -> None:
    regions = {"one": [1, 5], "other": [2, 5]}
    rules = choose_region_rules(tumours, REGION_LABELS, regions, order=[1, 5])
    assert not rules[0].is_kept
