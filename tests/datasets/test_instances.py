import json
from pathlib import Path

import numpy as np
import pytest

from medunet.datasets import examine, label_values, open_dataset, refuse_instances
from medunet.errors import DataError
from medunet.io import write_volume
from medunet.runs import evaluate_folders

INSTANCES = "these look like instance labels"


def squares(count: int, *, numbers=None) -> np.ndarray:
    """A grid of squares, one value each: 1 to `count` or the given numbers."""
    label = np.zeros((40, 45), np.uint16)
    for place, number in enumerate(numbers or range(1, count + 1)):
        row, column = divmod(place, 8)
        label[5 * row + 1 : 5 * row + 4, 5 * column + 1 : 5 * column + 4] = number
    return label


def dataset(root: Path, maps, **manifest: object) -> Path:
    for index, label in enumerate(maps):
        image = np.random.default_rng(index).integers(0, 255, label.shape).astype(np.uint8)
        write_volume(image, root / "images" / f"case{index}.png")
        write_volume(label, root / "labels" / f"case{index}.png")
    if manifest:
        (root / "dataset.json").write_text(json.dumps(manifest))
    return root


def test_instance_labels_of_one_to_fourteen_objects_are_rejected(tmp_path):
    root = dataset(tmp_path, [squares(1 + 5 * k % 14) for k in range(20)])
    with pytest.raises(DataError, match=rf"{INSTANCES}.*1 to 14 values per image, numbered from 1; .* in one piece"):
        open_dataset(root)
    with pytest.raises(DataError, match=INSTANCES):
        open_dataset(root, problems=[])  # as with --skip-bad
    assert [finding.cause.startswith(INSTANCES) for finding in examine(root).findings] == [True]


def test_too_many_values_are_reported_as_instances_only_if_each_is_one_piece(tmp_path):
    many = dataset(tmp_path / "many", [squares(40), squares(40, numbers=range(200, 240))])
    with pytest.raises(DataError, match=INSTANCES):
        open_dataset(many)
    noise = np.random.default_rng(0).integers(0, 60, (40, 45)).astype(np.uint16)
    with pytest.raises(DataError, match="too many values for classes"):
        open_dataset(dataset(tmp_path / "noise", [noise, noise]))


def test_declared_labels_are_classes(tmp_path):
    labels = {"background": 0, **{f"organ {k}": k for k in range(1, 15)}}
    root = dataset(tmp_path, [squares(1 + 5 * k % 14) for k in range(20)], labels=labels)
    assert open_dataset(root).labels == labels
    assert not examine(root).fails


@pytest.mark.parametrize("present", [1.0, 0.8, 0.4])
def test_fourteen_organs_are_classes_though_each_is_one_piece(tmp_path, present):
    rng = np.random.default_rng(3)
    organs = [[k if rng.random() < present else 0 for k in range(1, 15)] for _ in range(20)]
    root = dataset(tmp_path, [squares(14, numbers=numbers) for numbers in organs])
    assert len(open_dataset(root).labels) == 15


def test_rare_last_classes_are_classes(tmp_path, caplog):
    root = dataset(tmp_path, [squares(1 + k % 3) for k in range(9)])  # such as liver, tumour, cyst
    assert len(open_dataset(root).labels) == 4
    assert "values 1 to 3 are taken for classes; if they number objects, pass --instances" in caplog.text


def test_two_images_are_enough_to_recognise_instances(tmp_path):
    with pytest.raises(DataError, match=rf"{INSTANCES}.*pass --instances"):
        open_dataset(dataset(tmp_path, [squares(12), squares(7)]))


def test_grades_with_scattered_pieces_are_classes(tmp_path):
    scattered = [np.tile(squares(1 + k % 5)[:6, :26], (3, 1)) for k in range(10)]
    assert len(open_dataset(dataset(tmp_path, scattered)).labels) == 6


def test_evaluate_rejects_masks_against_instances(tmp_path):
    root = dataset(tmp_path, [squares(30), squares(38)])
    for index, count in enumerate((30, 38)):
        write_volume((squares(count) > 0).astype(np.uint8) * 255, root / "masks" / f"case{index}.png")
    for pred in ("masks", "labels"):
        with pytest.raises(DataError, match=r"declared as objects or as classes.*--instances"):
            evaluate_folders(root / pred, root / "labels", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_evaluate_accepts_many_classes(tmp_path):
    for folder in ("pred", "ref"):
        for index in range(3):
            write_volume(squares(40), tmp_path / folder / f"{index}.png")
    labels = {f"organ {k}": k for k in range(1, 41)}
    summary = evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", labels=labels)
    assert summary["mean_dice"] == 1.0


@pytest.mark.parametrize("is_declared", [True, False])
def test_swapped_images_and_labels_are_named(tmp_path, is_declared):
    root = dataset(tmp_path, [squares(2) for _ in range(3)])
    (root / "images").rename(root / "x")
    (root / "labels").rename(root / "images")
    (root / "x").rename(root / "labels")
    if is_declared:
        (root / "dataset.json").write_text('{"labels": {"background": 0, "left": 1, "right": 2}}')
    else:
        with pytest.raises(
            DataError, match=r"labels/case0.png: image and label look swapped .*values \[0, 1, 2\] only"
        ):
            open_dataset(root)
    causes = {finding.cause.partition(" (")[0] for finding in examine(root).findings if finding.severity == "error"}
    assert causes == {"image and label look swapped"}


@pytest.mark.parametrize(
    "folder", ["DSB2018_nuclei/labels", "CellTracking/DIC-C2DH-HeLa/gold", "CellTracking/PhC-C2DL-PSC/labels"]
)
def test_real_instances_are_detected(test_data, folder):
    files = sorted((test_data / folder).iterdir())[:90]
    with pytest.raises(DataError, match=INSTANCES):
        refuse_instances({path: label_values(path, limit=None) for path in files})


@pytest.mark.parametrize(
    "folder", ["Task04_Hippocampus/labelsTr", "ISBI2012_EM/labelsTr", "STS_GTV_CT/labelsTr", "CT_Spleen_cropped"]
)
def test_real_classes_are_not_taken_for_instances(test_data, folder):
    files = [path for path in sorted((test_data / folder).iterdir()) if "label" in str(path)]
    assert files
    refuse_instances({path: label_values(path, limit=None) for path in files})


def test_numbers_from_300_cause_a_warning_and_classes_of_equal_number_do_not(tmp_path, caplog):
    numbers = [300, 301, 302, 303, 304]
    maps = [squares(0, numbers=numbers[: 5 - index % 2]) for index in range(4)]
    assert len(open_dataset(dataset(tmp_path / "objects", maps)).labels) == 6
    assert "up to 5 values per image are taken for classes; if they number objects, pass --instances" in caplog.text
    caplog.clear()
    open_dataset(dataset(tmp_path / "organs", [squares(0, numbers=numbers)] * 4))
    assert not caplog.text
