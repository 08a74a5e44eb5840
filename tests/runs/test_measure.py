"""`medunet measure` and `predict --measure`: files in, tables out."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, Medunet

from medunet.errors import ConfigError
from medunet.io import read_volume, write_volume
from medunet.runs.measure import measure

pytestmark = pytest.mark.filterwarnings("ignore")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "measurements.json").read_text())["measurements"]


def test_a_folder_of_masks_is_measured_under_the_names_of_its_data_set(volumes: Path, tmp_path: Path) -> None:
    result = measure(volumes / "labelsTr", volumes / "imagesTr", tmp_path / "out")
    rows = result["measurements"]
    names = list(json.loads((volumes / "dataset.json").read_text())["labels"].values())
    assert {row["structure"] for row in rows} == set(names) - {"background"}
    assert rows == rows_of(tmp_path / "out")
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        assert [float(row["volume_mm3"]) for row in csv.DictReader(file)] == [row["volume_mm3"] for row in rows]
    first = rows[0]
    image = read_volume(next((volumes / "imagesTr").glob(f"{first['case']}*"))).image[0].numpy()
    label = read_volume(next((volumes / "labelsTr").glob(f"{first['case']}*"))).image[0].numpy()
    assert first["intensity_mean"] == pytest.approx(image[label == 1].mean(), rel=1e-6)
    with pytest.raises(ConfigError, match="masks in a data set need an output"):
        measure(volumes / "labelsTr")
    assert not (volumes / "labelsTr_measurements").exists()


def test_predict_measures_what_measure_would(run_3d: Path, volumes: Path, tmp_path: Path, medunet: Medunet) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for path in sorted((volumes / "imagesTr").iterdir())[:2]:
        shutil.copy(path, images)
    first = sorted(images.iterdir())[0]
    assert medunet("predict", run_3d, first, "-o", out, "--measure") == 0
    assert medunet("predict", run_3d, images, "-o", out, "--measure", "--skip-existing") == 0
    rows = rows_of(out)
    assert len({row["case"] for row in rows}) == 2
    assert measure(out, images, tmp_path / "again")["measurements"] == [pytest.approx(row) for row in rows]


def test_growth_is_printed_and_written(volumes: Path, tmp_path: Path, medunet: Medunet, capsys: Capture) -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    for name, radius in (("visit_1", 5), ("visit_2", 8)):
        mask[:] = np.linalg.norm(np.mgrid[-10:10, -10:10, -10:10], axis=0) < radius
        write_volume(mask, tmp_path / f"{name}.nii.gz", affine=np.eye(4), labels={"background": 0, "tumour": 1})
    assert medunet("measure", tmp_path / "visit_1.nii.gz") == 0
    assert medunet("measure", tmp_path / "visit_2.nii.gz", "--compare", tmp_path / "visit_1_measurements") == 0
    assert "volume_change_percent" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "visit_2_measurements" / "measurements.json").read_text())["growth"]
    assert (row["structure"], row["is_beyond_uncertainty"]) == ("tumour", True)
    assert row["volume_change_percent"] == pytest.approx(100 * ((8 / 5) ** 3 - 1), rel=0.1)
    assert medunet("measure", tmp_path / "visit_2.nii.gz") == 2  # the tables exist
    assert medunet("measure", tmp_path / "visit_2.nii.gz", "--force", "--compare", volumes / "dataset.json") == 2


def test_masks_that_cannot_be_measured_are_named(tmp_path: Path, medunet: Medunet, capsys: Capture) -> None:
    for name, shape in (("a", (9, 9, 9)), ("b", (9, 9, 8)), ("c", (9, 9, 9)), ("d", (9, 9, 9))):
        label = np.zeros(shape, np.uint8)
        label[2:5, 2:5, 2:5] = 3 if name == "c" else 1
        write_volume(label, tmp_path / "masks" / f"{name}.nii.gz", affine=np.eye(4))
        if name != "d":
            write_volume(np.ones((9, 9, 9), np.float32), tmp_path / "images" / f"{name}.nii.gz", affine=np.eye(4))
    words = ["measure", tmp_path / "masks", "--images", tmp_path / "images", "--labels", "liver=1"]
    assert medunet(*words) == 3
    error = capsys.readouterr().err
    assert "label does not lie on the image's grid" in error
    assert "the mask has values without a name" in error
    assert "the mask has no image of its name" in error
    assert [row["case"] for row in rows_of(tmp_path / "masks_measurements")] == ["a"]
    assert medunet("measure", tmp_path / "masks" / "c.nii.gz", "--labels", "liver=1", "-o", tmp_path / "out") == 2
    assert not (tmp_path / "out" / "measurements.json").exists()


def test_objects_are_measured_one_by_one_with_their_class(tmp_path: Path) -> None:
    data = tmp_path / "data"
    numbers = np.zeros((30, 20), np.uint16)
    numbers[2:6, 2:6], numbers[10:20, 5:9], numbers[25:, 0:4] = 1, 2, 7
    write_volume(numbers, data / "labels" / "a.png")
    write_volume((numbers * 9).astype(np.uint8), data / "images" / "a.png")
    (data / "dataset.json").write_text('{"instances": true, "labels": {"background": 0, "round": 1, "long": 2}}')
    (data / "labels" / "a_objects.csv").write_text("id,class\n1,round\n2,long\n7,round\n")
    rows = measure(data / "labels", data / "images", tmp_path / "out")["measurements"]
    assert [(row["object"], row["structure"], row["area_px"]) for row in rows] == [
        (1, "round", 16),
        (2, "long", 40),
        (7, "round", 20),
    ]
    assert [row["is_cut_off"] for row in rows] == [False, False, True]
    assert rows[1]["intensity_mean"] == 18
