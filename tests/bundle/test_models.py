"""The trained models that come with medunet."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import Capture, Medunet
from scipy import ndimage

from medunet import load
from medunet.bundle import find_bundle, get_model, resource_dir, shipped_models
from medunet.errors import DataError
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
    image, shaded = read_volume(data / "imagesTr" / name).image, tmp_path / "shaded" / name
    field = sum(np.meshgrid(*[np.linspace(-0.8, 0.8, n) for n in image.shape[1:]], indexing="ij"))
    write_volume((image[0].numpy() * np.exp(field)).astype(np.float32), shaded, affine=np.asarray(image.affine))
    label = read_volume(data / "labelsTr" / name).image[0].numpy()
    for number, file in enumerate((data / "imagesTr" / name, shaded)):
        assert medunet("predict", "hippocampus", file, "-o", tmp_path / str(number)) == 0
        found = read_volume(tmp_path / str(number) / name).image[0].numpy()
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


def test_changed_weights_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(resource_dir("bundles"), tmp_path / "bundles", ignore=shutil.ignore_patterns("*.pt"))
    monkeypatch.setattr("medunet.resources.resource_dir", lambda name: tmp_path / name)
    assert get_model("nuclei") == find_bundle("nuclei") == tmp_path / "bundles" / "nuclei"
    with (tmp_path / "bundles" / "nuclei" / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(DataError, match="weights differ from the registry"):
        get_model("nuclei", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


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
