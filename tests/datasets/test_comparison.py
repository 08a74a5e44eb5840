"""Findings across cases: duplicates, leaks, mirrored and unusual cases."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medunet.datasets import examine, write_phantom_dataset
from medunet.datasets.check.comparison import compare_cases
from medunet.datasets.check.statistics import CaseStatistics, Intensity
from medunet.io import read_volume, write_volume

LABELS = {"background": 0, "kidney": 1, "liver": 2}
GREY = Intensity(minimum=-10, low=0, median=50, high=100, maximum=120, mean=50, std=20)
FLAT = Intensity(minimum=3, low=3, median=3, high=3, maximum=3, mean=3, std=0)


def case(number: int, **changes) -> CaseStatistics:
    plain = CaseStatistics(
        name=f"case_{number}",
        file=Path(f"case_{number}.nii.gz"),
        section="training",
        shape=(9, 9, 9),
        spacing_mm=(1.0, 1.0, 2.0),
        orientation="RAS",
        dtype="int16",
        intensity=(GREY,),
        class_voxels={0: 700, 1: 20, 2: 9},
        class_right_mm={1: -30.0, 2: 40.0},
        image_digest=f"i{number}",
        label_digest=f"l{number}",
    )
    return replace(plain, **changes)


def causes(cases, labels=LABELS):
    findings = compare_cases(cases, labels)
    assert all(finding.severity == "warning" for finding in findings)
    return [(Path(finding.file).name.split(".")[0], finding.cause) for finding in findings]


@pytest.mark.parametrize(
    ("odd", "cause"),
    [
        ({}, None),
        ({"image_digest": "i0", "label_digest": "l0"}, "same image as case_0"),
        ({"image_digest": "i0"}, "same image as case_0, with another label"),
        (
            {"section": "test", "image_digest": "i0", "label_digest": "", "class_voxels": {}, "class_right_mm": {}},
            "test image is the training image case_0: metrics will be too good",
        ),
        ({"label_digest": "l0"}, "same label as case_0, but another image"),
        ({"class_right_mm": {1: 30.0, 2: -40.0}}, "'kidney' is to the right of 'liver', to the left in 9 other cases"),
        ({"spacing_mm": (1.0, 1.0, 20.0)}, "spacing 1 x 1 x 20 mm is far from the median 1 x 1 x 2 mm"),
        ({"spacing_mm": (2.0, 1.0, 1.0)}, None),  # the same grid with its axes in another order
        ({"intensity": (replace(GREY, high=1e6, maximum=1e6),)}, "intensities span 1e+06, 100 in the median case"),
        ({"intensity": (FLAT,)}, "image has one intensity only"),
        ({"class_right_mm": {1: -9.0, 2: 9.0}}, None),  # on the usual sides, if hardly
    ],
)
def test_an_odd_case_among_ten_is_named_with_its_cause(odd, cause):
    cases = [*(case(n) for n in range(9)), case(9, **odd)]
    assert causes(cases) == ([] if cause is None else [("case_9", cause)])


def test_empty_labels_are_not_reported_as_duplicates():
    empty = {"class_voxels": {0: 729}, "class_right_mm": {}, "label_digest": "e"}
    assert causes([case(0, **empty), case(1, **empty), case(2), case(3)]) == []


def test_classes_in_no_case_or_one_case_are_reported():
    rare = {"class_voxels": {0: 709, 1: 20}, "class_right_mm": {1: -30.0}}
    cases = [case(0), *(case(n, **rare) for n in range(1, 4))]
    assert causes(cases, {**LABELS, "spleen": 3}) == [
        ("", "class 'liver' (2) occurs in one case only"),
        ("", "class 'spleen' (3) occurs in no training case"),
    ]


def test_swapped_left_and_right_labels_are_reported():
    names = {"background": 0, "kidney_left": 1, "kidney_right": 2}
    cases = [case(0), case(1, class_right_mm={1: 30.0, 2: -40.0})]
    assert causes(cases, names) == [("case_1", "'kidney_left' is to the patient's right of 'kidney_right'")]


def test_single_class_on_the_opposite_side_is_reported():
    cases = [*(case(n, class_right_mm={2: 40.0}) for n in range(9)), case(9, class_right_mm={2: -40.0})]
    assert causes(cases) == [("case_9", "'liver' is to the left of the middle, to the right in 9 other cases")]


def test_classes_in_the_middle_have_no_side():
    odd = case(9, class_right_mm={1: -9.0, 2: 9.0})
    assert causes([*(case(n, class_right_mm={1: 5.0, 2: -4.0}) for n in range(9)), odd]) == []


def test_without_a_majority_nothing_is_reported_as_mirrored():
    sides = [1, -1, 1, -1, 1, -1, 1]
    assert causes([case(n, class_right_mm={1: -30.0 * s, 2: 40.0 * s}) for n, s in enumerate(sides)]) == []


def test_nearly_identical_images_are_reported_in_one_line(tmp_path):
    write_phantom_dataset(tmp_path, kind="cells", cases=5, size=(96, 80))
    rng = np.random.default_rng(0)
    for source, target in (("000", "cells_005"), ("000", "cells_006"), ("003", "cells_007")):
        image = read_volume(tmp_path / "imagesTr" / f"cells_{source}.png").image[0].numpy()
        noisy = np.clip(0.8 * image + rng.normal(10, 4, image.shape), 0, 255).astype(np.uint8)
        write_volume(noisy, tmp_path / "imagesTr" / f"{target}.png")
        label = read_volume(tmp_path / "labelsTr" / f"cells_{source}.png").image[0].numpy().astype(np.uint8)
        write_volume(label, tmp_path / "labelsTr" / f"{target}.png")

    (tmp_path / "dataset.json").unlink()  # it lists the cases

    def reported() -> list[str]:
        return [finding.cause for finding in examine(tmp_path).findings if "nearly" in finding.cause]

    why = "images are nearly identical (cells_000, cells_005, cells_006)"
    assert reported() == [f"folds may split 2 patients: {why}"]
    pairs = {"cells_005": "cells_000", "cells_006": "cells_000", "cells_007": "cells_003"}
    groups = {f"cells_{number:03d}": f"cells_{number:03d}" for number in range(8)} | pairs
    (tmp_path / "dataset.json").write_text(json.dumps({"groups": groups}))
    assert reported() == []
