import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medunet.bundle import find_bundle
from medunet.datasets import Case, datalist, examine, likely_groups, open_dataset, split_fold
from medunet.datasets.layouts.folds import make_folds
from medunet.errors import ConfigError, DataError
from medunet.io import write_volume
from medunet.planning import fingerprint
from medunet.runs import fit_bundle


def cases(*names: str) -> list[Case]:
    return [Case(name, (Path(f"{name}.png"),)) for name in names]


def names(cases) -> list[str]:
    return [case.name for case in cases]


def labelled(root: Path, names: list[str], sizes: list[int]) -> list[Case]:
    """Cases whose first class has so many voxels in the first rows; the odd ones also show a second class."""
    listed = []
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        label = np.zeros((20, 20), np.uint8)
        label.flat[:size] = 1
        label[-1, -1] = 2 * (number % 2)
        write_volume(np.full((20, 20), number, np.uint8), root / "images" / f"{name}.png")
        write_volume(label, root / "labels" / f"{name}.png")
        listed.append(Case(name, (root / "images" / f"{name}.png",), root / "labels" / f"{name}.png"))
    return listed


def test_the_default_split_balances_labels_and_does_not_depend_on_names(tmp_path):
    sizes = [4 * n for n in range(1, 21)]
    made = make_folds(labelled(tmp_path / "a", [f"c{n:02d}" for n in range(20)], sizes), 4)
    totals = [sum(sizes[int(case.name[1:])] for case in fold) for fold in made]
    assert [len(fold) for fold in made] == [5, 5, 5, 5]
    assert max(totals) - min(totals) < 0.15 * np.mean(totals)  # sorted names in turn: 0.36
    assert {sum(int(case.name[1:]) % 2 for case in fold) for fold in made} <= {2, 3}
    shuffled = np.random.default_rng(0).permutation(20)
    renamed = make_folds(labelled(tmp_path / "b", [f"x{n:02d}" for n in shuffled], sizes), 4)
    original = {f"x{new:02d}": f"c{old:02d}" for old, new in enumerate(shuffled)}
    assert [sorted(original[case.name] for case in fold) for fold in renamed] == [names(fold) for fold in made]


def test_training_and_validation_cases_of_a_fold_are_all_cases(tmp_path):
    given = labelled(tmp_path, [f"c{n}" for n in range(7)], [1] * 7)
    for fold in range(5):
        training, validation = split_fold(given, fold=fold)
        assert sorted([*training, *validation], key=lambda case: case.name) == given


def test_groups_stay_together_in_folds_of_equal_size():
    sizes = {"p0": 7, "p1": 3, "p2": 3, "p3": 2, "p4": 2, "p5": 2, "p6": 1, "p7": 1}
    grouped = [Case(f"{patient}_{k}", (), group=patient) for patient, size in sizes.items() for k in range(size)]
    folds = make_folds(grouped, 3)
    assert [len(fold) for fold in folds] == [7, 7, 7]
    assert sorted(patient for fold in folds for patient in {case.group for case in fold}) == list(sizes)


@pytest.mark.parametrize(
    ("fold", "folds", "groups", "cause"),
    [
        (5, 5, "abcdefghi", "unknown fold"),
        (-1, 5, "abcdefghi", "unknown fold"),
        (0, 1, "abcdefghi", "needs two folds"),
        (0, 5, "abcd", r"fewer cases than folds \(received 4, expected >= 5\)"),
        (0, 3, "ababababa", r"fewer groups of cases than folds \(received 2, expected >= 3\)"),
    ],
)
def test_impossible_folds_are_rejected(fold, folds, groups, cause):
    grouped = [Case(str(k), (), group=group) for k, group in enumerate(groups)]
    with pytest.raises(ConfigError, match=cause):
        split_fold(grouped, fold=fold, folds=folds)


def dataset(root: Path, *names: str, **manifest: object) -> Path:
    for index, name in enumerate(names):
        voxels = np.random.default_rng(index).integers(0, 99, (9, 8)).astype(np.uint8)
        write_volume(voxels, root / "images" / f"{name}.png")
        write_volume((voxels > 50).astype(np.uint8), root / "labels" / f"{name}.png")
    if manifest:
        (root / "dataset.json").write_text(json.dumps(manifest))
    return root


def test_groups_of_dataset_json_decide_the_folds(tmp_path):
    root = dataset(tmp_path, "a", "b", "c", "d", groups={"a": "p1", "b": "p1", "c": "p2", "d": 3})
    assert [case.group for case in open_dataset(root).cases] == ["p1", "p1", "p2", "3"]
    assert open_dataset(root).n_groups == 3
    validated = [datalist(root, section="validation", fold=fold, folds=2) for fold in (0, 1)]
    assert [[item["name"] for item in items] for items in validated] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("groups", "cause"),
    [
        ({"a": 1, "b": 1, "c": 2, "x": 2}, r"unknown cases \(received x\)"),
        ({"a": 1, "b": 2}, r"must name every training case \(received none for c\)"),
        ({"a": 1, "b": 1, "c": 1}, "at least two groups"),
        (["p1", "p1", "p2"], "must map each case to a name"),
        ({"a": 1, "b": [1], "c": 2}, "must map each case to a name"),
    ],
)
def test_groups_that_do_not_fit_the_cases_are_rejected(tmp_path, groups, cause):
    root = dataset(tmp_path, "a", "b", "c", groups=groups)
    with pytest.raises(DataError, match=f'dataset.json: "groups".* {cause}'):
        open_dataset(root)
    assert examine(root).fails


@pytest.mark.parametrize(
    "split",
    [
        ("patient01_a", "patient01_b", "patient02_a", "patient02_b"),
        ("sub-ABC_ses-1", "sub-ABC_ses-2", "sub-DEF_ses-1"),
        ("ACDC_patient001_frame01", "ACDC_patient001_frame12", "ACDC_patient002_frame01"),
        ("p1", "p1_repeat", "p2"),
        ("TCGA-DU-7304-1996", "TCGA-DU-7304-1997", "TCGA-CS-6665-2001"),
    ],
)
def test_common_stems_of_names_are_reported(split):
    (finding,) = likely_groups(cases(*split))
    assert finding.severity == "warning"
    assert finding.cause.startswith("folds may split ")
    assert finding.cause.endswith(f": names have a common stem ({split[0]}, {split[1]})")
    assert '"groups"' in str(finding.remedy)


@pytest.mark.parametrize(
    "separate",
    [
        ("hippocampus_001", "hippocampus_003", "hippocampus_004"),
        ("BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_003"),
        ("MR_T1_001", "MR_T1_002", "MR_T2_001", "MR_T2_002"),
        ("2018_001", "2018_002", "2019_001", "2019_002"),
        ("t000", "t001", "t002"),
        ("liver_a", "liver_b", "spleen_a", "spleen_b"),
    ],
)
def test_ordinary_names_are_not_reported(separate):
    assert likely_groups(cases(*separate)) == []


def test_equal_images_are_reported_unless_one_fold_has_them(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    apart = [Case(name, (tmp_path / name,)) for name in "abc"]
    (finding,) = likely_groups(apart)
    assert finding.cause == "folds may split a patient: images are equal (a, b)"
    assert likely_groups([replace(case, group="q" if case.name == "c" else "p") for case in apart]) == []
    grouped = [replace(case, group=case.name) for case in cases("patient01_a", "patient01_b", "patient02_a")]
    assert likely_groups(grouped) == []  # names do not count beside declared groups


def test_one_dicom_patient_in_two_cases_is_reported_without_naming_the_patient(tmp_path, make_series):
    for name, patient in (("x", "ID-1"), ("y", "ID-1"), ("z", "ID-2")):
        make_series(tmp_path / name, PatientID=patient)
    cause = "folds may split a patient: DICOM's PatientID is the same (x, y)"
    series = [Case(name, (tmp_path / name,)) for name in "xyz"]
    files = [Case(name, (next((tmp_path / name).iterdir()),)) for name in "xyz"]  # such as radiographs
    for scans in (series, files):
        (finding,) = likely_groups(scans)
        assert finding.cause == cause
        assert "ID-1" not in str(finding)
    assert likely_groups(series[:2]) == []  # as after anonymisation


def test_check_train_and_plan_warn_of_folds_that_split_a_patient(tmp_path, caplog):
    root = dataset(tmp_path, "p1_a", "p1_b", "p2_a")
    warning = "folds may split a patient: names have a common stem (p1_a, p1_b)"
    assert warning in [finding.cause for finding in examine(root).findings]
    for warn in (lambda: fit_bundle(find_bundle("unet_2d"), root), lambda: fingerprint(open_dataset(root))):
        caplog.clear()
        warn()
        assert f"{warning}; if these are" in caplog.text


def test_real_data_sets_are_not_reported(test_data):
    for folder in ("Task04_Hippocampus", "ISBI2012_EM", "STS_GTV_CT"):
        assert likely_groups(open_dataset(test_data / folder).cases) == []
