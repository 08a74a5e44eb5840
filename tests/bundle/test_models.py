"""The trained models that come with medunet, and those whose weights are fetched."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import Capture, Medunet
from scipy import ndimage

from medunet import load
from medunet.bundle import find_bundle, get_model, models, resource_dir, shipped_models
from medunet.errors import ConfigError, DataError
from medunet.files import sha256_of
from medunet.io import read_volume, write_volume
from medunet.metrics import count_objects, object_scores
from medunet.resources import WEIGHTS, model_registry
from medunet.trust import judge


@pytest.mark.parametrize("name", shipped_models())
def test_models_are_small_trusted_and_have_a_card(name: str) -> None:
    folder = find_bundle(name)
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pt"]
    assert sum(path.stat().st_size for path in files) < 6 << 20
    assert judge(folder).reason == "known"
    entry, metadata = model_registry()[name], json.loads((folder / "configs" / "metadata.json").read_text())
    card = (folder / entry["card"]).read_text()
    assert "## Results" in card
    assert all(f"| {title} | {value:.3f} |" in card for title, value in entry["metrics"].items())
    assert (entry["version"], entry["task"]) == (metadata["version"], metadata["task"])
    assert (entry["size"], entry["sha256"]) == ((folder / WEIGHTS).stat().st_size, sha256_of(folder / WEIGHTS))
    for config in (folder / "configs").glob("*.json"):
        values = json.loads(config.read_text())
        assert (values.get("dataset_dir", "."), values.get("init_from")) == (".", None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("colours", [1, 3])
def test_nuclei_are_segmented_without_training(colours: int, tmp_path: Path, medunet: Medunet) -> None:
    random = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(32, 256, 48), np.arange(32, 256, 48)), -1).reshape(-1, 2)
    axes = np.indices((256, 256))
    numbers = np.zeros((256, 256), np.int32)
    for number, place in enumerate(places + random.uniform(-8, 8, places.shape), start=1):
        numbers[sum((axis - at) ** 2 for axis, at in zip(axes, place, strict=True)) < random.uniform(8, 13) ** 2] = (
            number
        )
    image = ndimage.gaussian_filter((numbers > 0) * 90.0, 1.2) + 12 + random.normal(0, 3, numbers.shape)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    file = tmp_path / "cells.png"
    PIL.Image.fromarray((np.stack([pixels] * colours, axis=-1) if colours > 1 else pixels).swapaxes(0, 1)).save(file)
    assert medunet("predict", "nuclei", file, "-o", tmp_path / "out") == 0
    found = np.asarray(read_volume(tmp_path / "out" / "cells.png").image)[0].astype(np.int32)
    scores = object_scores(count_objects(found, numbers))
    assert scores["ap_50"] > 0.9
    assert (tmp_path / "out" / "cells_objects.csv").is_file()
    assert np.array_equal(load("nuclei", device="cpu").predict(file).labels, found)


@pytest.mark.filterwarnings("ignore")
def test_the_hippocampus_is_segmented_without_training(test_data: Path, tmp_path: Path, medunet: Medunet) -> None:
    data = test_data / "Task04_Hippocampus"
    name = "hippocampus_001.nii.gz"  # of fold 0, which was held out
    assert medunet("predict", "hippocampus", data / "imagesTr" / name, "-o", tmp_path) == 0
    found, label = (read_volume(path / name).image[0].numpy() for path in (tmp_path, data / "labelsTr"))
    for value in (1, 2):
        pred, ref = found == value, label == value
        assert 2 * (pred & ref).sum() > 0.75 * (pred.sum() + ref.sum())


def test_get_copies_a_model_into_a_new_folder(tmp_path: Path, medunet: Medunet, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    assert medunet("get", "nuclei", "-o", copy) == 0
    assert f"model card: {copy / 'docs' / 'README.md'}" in capsys.readouterr().out.replace("\n", "")
    assert judge(find_bundle(copy)).reason == "known"
    assert medunet("get", "nuclei", "-o", copy) == medunet("get", "nosuch") == 2
    (copy / WEIGHTS).write_bytes(b"other")
    assert medunet("get", "nuclei") == 0


def test_missing_weights_are_fetched_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (find_bundle("nuclei") / WEIGHTS).read_bytes()
    installed = tmp_path / "bundles"
    shutil.copytree(resource_dir("bundles"), installed, ignore=shutil.ignore_patterns("*.safetensors", "*.pt"))
    monkeypatch.setattr("medunet.resources.resource_dir", lambda name: installed)
    monkeypatch.setattr(models, "resource_dir", lambda name: installed)
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"weights of this model are missing.*medunet get nuclei"):
        find_bundle("nuclei")
    release = tmp_path / "release"
    release.mkdir()
    for address, fault in (("", ConfigError), ("ftp://host", ConfigError), (str(release), DataError)):
        monkeypatch.setenv("MEDUNET_MODELS", address)
        with pytest.raises(fault):
            get_model("nuclei")
    for content in (weights[:-1], weights + b" ", weights[:-1] + b"\0"):
        (release / "nuclei-0.1.0.safetensors").write_bytes(content)
        with pytest.raises(DataError, match="the weights differ from the registry"):
            get_model("nuclei")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    (release / "nuclei-0.1.0.safetensors").write_bytes(weights)
    monkeypatch.setenv("MEDUNET_MODELS", release.as_uri())
    folder = get_model("nuclei")
    assert folder == find_bundle("nuclei") == tmp_path / "cache" / "models" / "nuclei-0.1.0"
    assert judge(folder).reason == "known"
    assert (folder / WEIGHTS).read_bytes() == weights


@pytest.mark.filterwarnings("ignore")
def test_training_starts_from_a_model(tmp_path: Path, medunet: Medunet) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images").mkdir(exist_ok=True)
        colours = random.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        PIL.Image.fromarray(colours).save(tmp_path / "images" / f"{name}.png")
        write_volume(np.pad(np.full((8, 8), 3, np.uint16), 28), tmp_path / "labels" / f"{name}.png")
    (tmp_path / "dataset.json").write_text('{"instances": true}')
    words = ["--epochs", 1, "--set", "steps_per_epoch=1", "--set", "folds=2", "--no-tracking", "-o", tmp_path / "run"]
    assert medunet("train", "nuclei", "--data", tmp_path, "--init-from", "nuclei", *words) == 0
    assert (tmp_path / "run" / "models" / "model.pt").is_file()
