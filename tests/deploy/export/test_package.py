"""A packed bundle passes the checks of MONAI and its model zoo, and has no private values."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from monai.data import load_net_with_metadata

from medunet.bundle import find_bundle, resource_dir, shipped_bundles, specialise, verify_bundle
from medunet.config import read_json
from medunet.deploy.export import package_bundle
from medunet.errors import ConfigError, DataError
from medunet.prediction import Predictor
from medunet.trust import judge, unpack

from .conftest import with_weights

pytestmark = pytest.mark.filterwarnings("ignore")

# the necessary and the preferred files of the model zoo's ci/verify_bundle.py, and the readme of its guide
ZOO_NEEDS = ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.json", "docs/README.md")


@pytest.fixture(scope="session", params=shipped_bundles())
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A shipped bundle with weights, packed and unpacked."""
    folder = tmp_path_factory.mktemp(request.param)
    levels = len(read_json(find_bundle(request.param) / "configs" / "inference.json")["network_def"]["channels"])
    bundle = with_weights(request.param, folder / "run", {"network_def::channels": [4] * levels})
    package_bundle(bundle, folder / f"{request.param}_v0.1.0.zip")
    with zipfile.ZipFile(folder / f"{request.param}_v0.1.0.zip") as archive:
        archive.extractall(folder / "models")  # as MONAI's own download does
    yield folder / "models" / request.param
    shutil.rmtree(folder)


def test_the_zoo_and_medunet_accept_a_package(packed: Path, tmp_path: Path) -> None:
    assert [name for name in ZOO_NEEDS if not (packed / name).is_file()] == []
    configs = packed / "configs"
    metadata = json.loads((configs / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert "supported_apps" in metadata
    schema = tmp_path / "schema.json"
    shutil.copyfile(resource_dir("configs") / "metadata.schema.json", schema)  # else MONAI downloads it
    verify_metadata(meta_file=str(configs / "metadata.json"), filepath=str(schema))
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    common = {**files, "net_id": "network_def", "bundle_root": str(packed)}
    verify_net_in_out(device="cpu", **common)
    ckpt_export(filepath=str(tmp_path / "model.ts"), ckpt_file=str(packed / "models" / "model.pt"), **common)
    assert torch.jit.load(tmp_path / "model.ts")
    assert (judge(packed).reason, judge(packed).weights) == ("known", ("model.pt",))
    assert [fault for fault in verify_bundle(packed).values() if fault] == []


def test_equal_bundles_give_equal_bytes(bundles: dict[str, Path], tmp_path: Path) -> None:
    first = package_bundle(bundles["padded"], tmp_path / "a" / "organs.zip", torchscript=True)
    again = shutil.copytree(bundles["padded"], tmp_path / "elsewhere", copy_function=shutil.copyfile)
    second = package_bundle(again, tmp_path / "b" / "organs.zip", torchscript=True)
    assert first.sha256 == second.sha256 == hashlib.sha256(second.path.read_bytes()).hexdigest()
    entries = zipfile.ZipFile(second.path).infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.filename.split("/")[0] for entry in entries} == {"organs"}


def test_private_values_are_left_out(bundles: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "clinic" / "patients"
    own = {
        "store_dir": "/scratch/store",
        "validation_cases": ["Doe_Jane"],
        "tracking_uri": "http://tracking.clinic:5000",
    }
    run = specialise(bundles["padded"], tmp_path / "run", own, data=data)
    shutil.copytree(bundles["padded"] / "models", run / "models")
    shutil.copyfile(run / "models" / "model.pt", run / "models" / "last.pt")
    files = {"eval/metrics.csv": "Doe_Jane,0.9", "predictions/Doe_Jane.nii.gz": "label"}
    for name, text in {**files, "docs/README.md": f"# Organs\n\nTrained on `{data}/imagesTr`.\n"}.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)
    done = package_bundle(run, tmp_path / "organs.zip")
    assert any("predictions" in line for line in done.remarks)
    archive = zipfile.ZipFile(done.path)
    assert {name for name in archive.namelist() if "/models/" in name} == {"organs/models/model.pt"}
    for name in archive.namelist():
        content = archive.read(name)
        for secret in ("Doe", "clinic", "/scratch", str(tmp_path), "patients"):
            assert secret.encode() not in content, f"{secret} in {name}"
    unpacked = unpack(done.path, tmp_path / "theirs")
    assert json.loads((unpacked / "configs" / "train.json").read_text())["store_dir"] is None
    assert judge(unpacked).reason == "known"


def test_a_packed_bundle_predicts_as_before(bundles: dict[str, Path], volume: Path, tmp_path: Path) -> None:
    done = package_bundle(bundles["padded"], tmp_path / "organs_v0.1.0.zip", torchscript=True)
    assert done.name == "organs"
    theirs = unpack(done.path, tmp_path / "theirs")
    found = [
        Predictor(bundle, output_dir=tmp_path / "out", device="cpu").decide(volume)["pred"]
        for bundle in (bundles["padded"], theirs)
    ]
    assert torch.equal(*found)
    network, metadata, _ = load_net_with_metadata(str(theirs / "models" / "model.ts"))
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert network(torch.zeros(1, 1, 16, 20, 24)).shape == (1, 3, 16, 20, 24)


def test_a_bundle_that_fails_a_check_is_not_packed(bundles: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(bundles["padded"], tmp_path / "run")
    path = run / "configs" / "metadata.json"
    metadata = path.read_text()
    path.write_text(json.dumps({**json.loads(metadata), "version": "0.2.0"}))
    with pytest.raises(ConfigError, match="changelog"):
        package_bundle(run, tmp_path / "a.zip")
    path.write_text(metadata)
    (run / "LICENSE").unlink()
    with pytest.raises(ConfigError, match="LICENSE"):
        package_bundle(run, tmp_path / "a.zip")
    with pytest.raises(DataError, match="checkpoint is missing"):
        package_bundle(find_bundle("unet_2d"), tmp_path / "a.zip")
    with pytest.raises(ConfigError, match="invalid name"):
        package_bundle(bundles["padded"], tmp_path / "a.zip", name="../evil")
    assert not (tmp_path / "a.zip").exists()
