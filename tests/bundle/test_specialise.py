"""Copies of a bundle with changed values."""

from pathlib import Path
from typing import Any

import pytest

from medunet.bundle import find_bundle, specialise
from medunet.bundle.explain import list_ids, meanings
from medunet.config import read_json
from medunet.errors import ConfigError
from medunet.resources import shipped_bundles


def read(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / "configs" / f"{name}.json")


def test_values_change_in_every_config_that_has_them(tmp_path: Path) -> None:
    changes = {"label_values": [0, 5], "label_names": ["b", "x"], "augment#noise#prob": 0.7}
    folder = specialise(find_bundle("unet_3d"), tmp_path / "own", {**changes, "network_def::dropout": 0.1})
    for name in ("train", "evaluate", "inference"):
        assert read(folder, name)["label_values"] == [0, 5]
        assert read(folder, name)["network_def"]["dropout"] == 0.1
    assert read(folder, "train")["augment"]["noise"]["prob"] == 0.7
    pred = read(folder, "metadata")["network_data_format"]["outputs"]["pred"]
    assert (pred["num_channels"], pred["channel_def"]) == (2, {"0": "b", "1": "x"})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("epoch", "epochs"),
        ("network_def::dropuot", "dropout"),
        ("augment::nois::prob", "augment::noise"),
        ("label_values", "label_names and label_values must have the same length"),
    ],
)
def test_an_unknown_key_or_a_wrong_number_of_classes_is_rejected(tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        specialise(find_bundle("unet_3d"), tmp_path / "own", {key: [0]})
    assert not (tmp_path / "own").exists()


def test_the_readme_has_the_values_of_the_copy_and_names_no_case(tmp_path: Path) -> None:
    values = {"network_def::channels": [4, 8], "batch_size": 7, "validation_cases": ["Doe"], "init_from": "/home/run"}
    docs = (specialise(find_bundle("unet_3d"), tmp_path / "own", values) / "docs" / "README.md").read_text()
    assert "channels [4, 8]" in docs
    assert "| `batch_size` | `7` | set for this run, unet_3d has 4; patches per step" in docs
    assert "| `validation_cases` | `1 case` |" in docs
    assert "Doe" not in docs and "/home" not in docs


def test_ids_have_values_meanings_and_origins(tmp_path: Path) -> None:
    folder = specialise(find_bundle("unet_3d"), tmp_path / "own", {"epochs": 3})
    ids = {entry.id: entry for entry in list_ids(folder)}
    assert (ids["epochs"].value, ids["epochs"].type, ids["epochs"].origin) == (3, "integer", "changed")
    assert ids["batch_size"].origin == "default"
    assert ids["tile_size"].configs == ("train", "evaluate", "inference")
    assert ids["augment::noise"].meaning
    assert not ids["train::trainer::network"].meaning
    every = {entry.id for name in shipped_bundles() for entry in list_ids(find_bundle(name))}
    optional = {"network_def::dropout", "network_def::deep_supervision", "augment::deform::axis_scale_range"}
    assert set(meanings()) - every <= optional
