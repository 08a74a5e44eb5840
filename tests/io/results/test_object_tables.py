"""Tables of objects beside a label map."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError, DataError
from medunet.io import SavePredictiond, read_volume, write_volume


def item(folder: Path, shape=(12, 9), suffix=".png") -> dict:
    """Return an item with two objects, as postprocessing of instances leaves it."""
    path = folder / f"cells{suffix}"
    write_volume(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape), path)
    volume = read_volume(path)
    labels = torch.zeros((1, *shape), dtype=torch.int32)
    labels[0, 1:4, 2:5], labels[0, 6:9, 2:4] = 1, 2
    return {
        "image": volume.image,
        "source": volume.image.clone(),
        "pred": MetaTensor(labels).copy_meta_from(volume.image),
        "foreground": torch.where(labels == 1, 0.75, 0.5),
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_with_intensities_and_confidence_is_beside_the_label_map(tmp_path):
    data = item(tmp_path)
    saved = SavePredictiond(output_dir=tmp_path / "out", labels={"background": 0, "nucleus": 1}, objects=["csv"])(data)
    assert np.asarray(read_volume(saved["pred_path"]).image).max() == 2
    first, second = rows(tmp_path / "out" / "cells_objects.csv")
    assert (first["id"], first["class"], first["area_px"], first["confidence"]) == ("1", "nucleus", "9", "0.75")
    assert (second["x"], second["y"], second["x_max"], second["y_max"]) == ("7", "2.5", "8", "3")
    assert float(second["mean_intensity"]) == np.asarray(data["source"])[0, 6:9, 2:4].mean()


def test_classes_and_physical_sizes_of_volumes_are_written(tmp_path):
    data = item(tmp_path, (12, 9, 2), ".nii.gz") | {"object_classes": np.array([0, 2, 1])}
    labels = {"background": 0, "round": 1, "long": 2}
    SavePredictiond(output_dir=tmp_path / "out", labels=labels, objects=["csv"])(data)
    table = rows(tmp_path / "out" / "cells_objects.csv")
    assert [(row["class"], row["volume_mm3"]) for row in table] == [("long", "18"), ("round", "12")]


def test_outlines_of_volumes_and_existing_tables_are_rejected_before_the_network_runs(tmp_path):
    data = item(tmp_path, (12, 9, 2), ".nii.gz")
    with pytest.raises(ConfigError, match="outlines of 2D objects only"):
        SavePredictiond(output_dir=tmp_path / "out", objects=["csv", "geojson"]).check(data)
    (tmp_path / "cells_objects.csv").write_text("edited by hand")
    with pytest.raises(DataError, match="exists already"):
        SavePredictiond(output_dir=tmp_path, objects=["csv"], format="seg.nrrd").check(data)
