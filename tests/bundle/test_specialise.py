"""Copies of a bundle with changed values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medunet.bundle import find_bundle, specialise
from medunet.bundle.explain import list_ids, meanings
from medunet.errors import ConfigError, DataError


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / "configs" / f"{name}.json").read_text())


def test_values_change_in_every_config_that_has_them(tmp_path: Path) -> None:
    folder = specialise(find_bundle("unet_3d"), tmp_path / "own", {"label_values": [0, 5], "label_names": ["b", "x"]})
    for name in ("train", "evaluate", "inference"):
        assert read(folder, name)["label_values"] == [0, 5]
    pred = read(folder, "metadata")["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == 2
    assert pred["channel_def"] == {"0": "b", "1": "x"}


def test_inner_values_change_by_id_with_either_separator(tmp_path: Path) -> None:
    changes = {"augment#noise#prob": 0.7, "network_def::dropout": 0.1}
    folder = specialise(find_bundle("unet_2d"), tmp_path / "own", changes)
    assert read(folder, "train")["augment"]["noise"]["prob"] == 0.7
    assert read(folder, "inference")["network_def"]["dropout"] == 0.1


@pytest.mark.parametrize(
    ("key", "hint"),
    [("epoch", "epochs"), ("network_def::dropuot", "dropout"), ("augment::nois::prob", "augment::noise")],
)
def test_an_unknown_key_is_rejected_with_the_closest(tmp_path: Path, key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        specialise(find_bundle("unet_3d"), tmp_path / "own", {key: 1})
    assert not (tmp_path / "own").exists()


def test_names_and_values_of_classes_must_match(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_names and label_values must have the same length"):
        specialise(find_bundle("unet_3d"), tmp_path / "own", {"label_values": [0, 1]})


def test_another_configuration_does_not_replace_a_run(tmp_path: Path) -> None:
    specialise(find_bundle("unet_3d"), tmp_path, {"epochs": 3})
    specialise(find_bundle("unet_3d"), tmp_path, {"epochs": 3})
    with pytest.raises(DataError, match="epochs: 4, there 3"):
        specialise(find_bundle("unet_3d"), tmp_path, {"epochs": 4})
    assert read(tmp_path, "train")["epochs"] == 3


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
    every = {id_ for name in ("unet_3d", "unet_2d", "unet_2015") for id_ in (e.id for e in list_ids(find_bundle(name)))}
    optional = {"network_def::dropout", "network_def::deep_supervision", "augment::deform::axis_scale_range"}
    assert set(meanings()) - every <= optional
