"""Bundles match their sources."""

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, render, render_all, resource_dir, shipped_bundles, verify_bundle
from medunet.errors import ConfigError

BUNDLES = ["unet_2015", "unet_2d", "unet_3d"]


def test_rendering_again_changes_nothing() -> None:
    assert shipped_bundles() == BUNDLES
    assert render_all(check=True) == []


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_workflows_define_one_network_and_one_preprocessing_and_verify(name: str) -> None:
    files = render(name)
    train, evaluate, inference = (json.loads(files[f"configs/{w}.json"]) for w in ("train", "evaluate", "inference"))
    for key in ("network_def", "image_steps", "in_channels", "label_values", "tile_size"):
        assert train[key] == evaluate[key] == inference[key]
    for key in ("load", "normalize", "spacing"):
        assert train["steps"].get(key) == inference["steps"].get(key)
    assert {check: fault for check, fault in verify_bundle(find_bundle(name)).items() if fault} == {}


def test_the_readme_gives_a_reason_for_each_value_that_decides() -> None:
    docs = render("unet_2015")["docs/README.md"]
    assert "| `learning_rate` | `0.001` | the paper gives the momentum only |" in docs
    assert "| `patience` | `0` | " in docs
    assert "| `spacing_mm`" not in docs


def test_a_misspelt_value_of_a_bundle_is_rejected(tmp_path: Path) -> None:
    sources = shutil.copytree(resource_dir("configs"), tmp_path / "configs")
    recipes = sources / "bundles.yaml"
    recipes.write_text(recipes.read_text().replace("patch_size:", "patchsize:", 1))
    with pytest.raises(ConfigError, match=r"patchsize.*patch_size"):
        render("unet_3d", sources=sources)


def test_check_reports_an_edited_file_and_render_fixes_it(tmp_path: Path) -> None:
    output = shutil.copytree(resource_dir("bundles"), tmp_path / "bundles", ignore=shutil.ignore_patterns("models"))
    edited = output / "unet_3d" / "configs" / "train.json"
    edited.write_text(edited.read_text().replace('"batch_size": 4', '"batch_size": 5'))
    assert render_all(output=output, check=True) == [edited]
    assert render_all(output=output) == [edited]
    assert render_all(output=output, check=True) == []


def test_an_unknown_bundle_is_rejected_with_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="unet_2015, unet_2d, unet_3d"):
        find_bundle("unet_4d")


@pytest.mark.parametrize(("patience", "kept"), [(0, "last"), (3, "best")])
def test_training_that_may_end_early_keeps_its_best_epoch(patience: int, kept: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(find_bundle("unet_3d") / "configs" / "train.json"))
    parser.update({"keep_epoch": "last", "patience": patience})
    assert parser.get_parsed_content("train::handlers::0::keep") == kept
