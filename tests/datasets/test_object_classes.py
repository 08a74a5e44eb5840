"""Data sets whose labels number objects, of one class or several."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medunet.datasets import datalist, examine, open_dataset
from medunet.errors import DataError
from medunet.io import LoadLabeld, MedunetReader, read_volume, write_volume
from medunet.io.objects import MAX_OBJECTS

LABEL = np.zeros((24, 17), np.int32)
LABEL[2:6, 2:6], LABEL[2:6, 6:9], LABEL[12:20, 4:12] = 3, 70_000, MAX_OBJECTS  # the first two touch
NAMES = {"background": 0, "lymphocyte": 1, "tumour": 2}


def write(root: Path, *, suffix: str = ".tif", table: str = "", manifest: object = None, label=LABEL) -> Path:
    for case in "ab":
        write_volume(
            np.random.default_rng(0).integers(0, 255, label.shape).astype(np.uint8), root / f"images/{case}.png"
        )
        path = root / f"labels/{case}{suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == ".tif":
            tifffile.imwrite(path, label.T)
        else:
            write_volume(label, path)
    if table:
        (root / "classes.csv").write_text(table)
    if manifest is not None:
        (root / "dataset.json").write_text(json.dumps(manifest))
    return root


def load(root: Path, labels=None):
    item = datalist(root, section="all", instances=True)[0]
    return LoadLabeld(labels=labels, instances=True)({**item, "image": read_volume(item["image"]).image})


@pytest.mark.parametrize("suffix", [".tif", ".nii.gz", ".mha"])
def test_object_numbers_are_read_exactly(tmp_path, suffix):
    item = load(write(tmp_path, suffix=suffix))
    assert item["label"].dtype.is_floating_point is False
    assert np.array_equal(item["label"].numpy()[0], LABEL)
    assert item["label"].shape == (1, *LABEL.shape)


def test_objects_have_one_class_unless_declared_otherwise(tmp_path):
    dataset = open_dataset(write(tmp_path), instances=True)
    assert dataset.instances
    assert dataset.labels == {"background": 0, "object": 1}
    write(tmp_path, manifest={"instances": True, "labels": {"background": 0, "nucleus": 255}})
    assert open_dataset(tmp_path).labels == {"background": 0, "nucleus": 1}
    assert open_dataset(tmp_path).instances


TABLE = "case,id,class\n" + "".join(f"{case},{row}\n" for case in "ab" for row in ("3,tumour", "70000,lymphocyte"))


def test_a_table_gives_the_class_of_each_object(tmp_path):
    root = write(tmp_path, table=f"{TABLE}a,{MAX_OBJECTS},tumour\n")
    assert open_dataset(root, instances=True).labels == NAMES
    item = load(root, NAMES)
    expected = np.select([LABEL == 70_000, LABEL > 0], [1, 2])
    assert np.array_equal(item["label"].numpy()[0], LABEL)
    assert np.array_equal(item["label"].numpy()[1], expected)
    for case in "ab":  # a table per case, with the values of dataset.json
        (root / f"labels/{case}.csv").write_text(f"id,class\n3,2\n70000,1\n{MAX_OBJECTS},2\n")
    (root / "classes.csv").unlink()
    assert np.array_equal(load(root, NAMES)["label"].numpy()[1], expected)


def test_a_folder_of_class_maps_gives_the_class_of_each_object(tmp_path):
    root, values = write(tmp_path), {"background": 0, "lymphocyte": 5, "tumour": 9}
    for case in "ab":
        classes = np.select([LABEL == 70_000, LABEL > 0], [5, 9]).astype(np.uint8)
        write_volume(classes, root / f"labels_class/{case}.png")
    assert open_dataset(root, instances=True).labels == {"background": 0, "class_5": 5, "class_9": 9}
    (root / "dataset.json").write_text(json.dumps({"labels": values}))
    assert open_dataset(root, instances=True).labels == values
    assert np.array_equal(load(root, values)["label"].numpy()[1], np.select([LABEL == 70_000, LABEL > 0], [1, 2]))
    classes[3, 3] = 5
    write_volume(classes, root / "labels_class/a.png")
    with pytest.raises(DataError, match=r"an object must have one class .*two in object 3"):
        load(root, values)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", f"objects of case a have no class .*object {MAX_OBJECTS}"),
        ("a,5,tumour\n", "the label of case a has no such object .*object 5"),
        ("a,3,lymphocyte\n", "an object must have one row .*case a, object 3 again on line 6"),
        (f"a,{MAX_OBJECTS},stroma\n", "unknown class of object .*stroma, expected lymphocyte"),
        ("a,x,tumour\n", "line 6: id must be a whole number"),
        ("a,1\n", "line 6: id must be a whole number, and class must not be empty"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, rows, message):
    root = write(tmp_path, table=TABLE + rows)
    with pytest.raises(DataError, match=message):
        load(root, NAMES)


def test_check_counts_classes_and_names_faults_of_a_case(tmp_path):
    root = write(tmp_path, table=f"{TABLE}a,{MAX_OBJECTS},tumour\nb,{MAX_OBJECTS},tumour\n")
    result = examine(root, instances=True)
    assert not result.fails
    sizes = {name: entry["fraction"] * LABEL.size for name, entry in result.summary()["classes"].items()}
    assert sizes == pytest.approx({"background": LABEL.size - 92, "lymphocyte": 12, "tumour": 80})
    (root / "classes.csv").write_text(TABLE + f"a,{MAX_OBJECTS},tumour\n")
    (error, *_) = examine(root, instances=True).findings
    assert (error.severity, error.case) == ("error", "b")
    assert error.cause == f"objects of case b have no class (received object {MAX_OBJECTS})"


def test_volumes_may_have_instances(tmp_path):
    label = np.zeros((9, 8, 7), np.int32)
    label[1:4, 1:4, 1:4], label[4:6, 1:4, 1:4] = 300, 70_000
    for case in "ab":
        write_volume(
            np.ones(label.shape, np.int16), tmp_path / f"images/{case}.nii.gz", affine=np.diag([0.5, 0.5, 2, 1])
        )
        write_volume(label, tmp_path / f"labels/{case}.nii.gz", affine=np.diag([0.5, 0.5, 2, 1]))
    result = examine(tmp_path, instances=True)
    assert not result.fails
    objects = result.summary()["objects"]
    assert (objects["count"], objects["touching_fraction"], objects["median_mm3"]) == (4, 1.0, 22.5 * 0.5)
    assert np.array_equal(load(tmp_path)["label"].numpy()[0], label)


def test_classes_without_files_that_assign_them_are_rejected(tmp_path):
    root = write(tmp_path, manifest={"instances": True, "labels": NAMES})
    with pytest.raises(DataError, match="objects of several classes need their classes"):
        open_dataset(root)
    (root / "labels/a.csv").write_text("id,class\n")
    with pytest.raises(DataError, match="objects of some cases have no classes"):
        open_dataset(root)
    (root / "labels/b.csv").write_text("number,class\n")
    write(root, manifest={"instances": True})
    with pytest.raises(DataError, match=r"columns are missing .*number, class"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("value", "message"),
    [(MAX_OBJECTS + 1, "must be at most 16777215"), (-1, "must not be negative"), (1.5, "must be whole")],
)
def test_numbers_that_are_not_exact_are_rejected(tmp_path, value, message):
    label = LABEL.astype(np.float64 if value == 1.5 else np.int32)
    label[0, 0] = value
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, label=label, suffix=".nii.gz"))


@pytest.mark.parametrize("name", ["DSB2018_nuclei", "CellTracking/DIC-C2DH-HeLa", "CellTracking/PhC-C2DL-PSC"])
def test_real_instances_open_as_they_are(test_data, name):
    dataset = open_dataset(test_data / name, instances=True)
    assert dataset.labels == {"background": 0, "object": 1}
    case = dataset.cases[0].item()
    image = MedunetReader(spatial_dims=2).get_data((Path(case["image"]),))[0]
    label = load(test_data / name)["label"]
    assert label.shape[1:] == image.shape[-2:]
    assert label.max() > 1
