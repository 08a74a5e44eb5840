"""MONAI's own commands on the shipped bundles, as a researcher types them."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Capture, run_monai_bundle
from forks import run_two_processes
from monai.bundle import ConfigWorkflow
from small import classes_of

from medunet.bundle import find_bundle
from medunet.datasets import open_dataset
from medunet.io import read_volume
from medunet.resources import resource_dir

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI and ignite warn about themselves

# as small as the pipeline allows; two levels without padding: 40 in, 24 out
SMALL: dict[str, dict[str, Any]] = {
    "unet_3d": {"network_def::channels": [4, 8], "patch_size": [16, 16, 16]},
    "unet_2d": {"network_def::channels": [4, 8], "patch_size": [32, 32]},
    "unet_2015": {"network_def::channels": [4, 8], "patch_size": [40, 40], "tile_size": [40, 40]},
}
TRAINING = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2, "val_interval": 1, "folds": 2}


@pytest.fixture(params=list(SMALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(name: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue("volumes" if name == "unet_3d" else "cells")
    return path


def test_train_evaluate_predict_export(name: str, data: Path, tmp_path: Path) -> None:
    configs, root, dataset = find_bundle(name) / "configs", tmp_path / "root", open_dataset(data)
    common = {"bundle_root": root, **SMALL[name], **classes_of(data)}
    untracked = {"tracking_uri": "", "dataset_dir": data, **TRAINING}
    run_monai_bundle("run", "training", config_file=configs / "train.json", **common, **untracked)
    assert torch.load(root / "models" / "model.pt", weights_only=True).keys() == {"model"}
    assert [entry["epoch"] for entry in json.loads((root / "eval" / "history.json").read_text())] == [1, 2]
    evaluate = {"config_file": configs / "evaluate.json", "dataset_dir": data, "folds": 2}
    run_monai_bundle("run", "evaluating", **evaluate, **common)
    rows = (root / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()  # of MONAI's MetricsSaver
    assert len(rows) == 1 + len(dataset.cases) // 2
    inference = {"config_file": configs / "inference.json", "dataset_dir": data / "imagesTr"}
    run_monai_bundle("run", "inference", **inference, prediction_dir=tmp_path / "out", **common)
    for case in dataset.cases:
        pred, image = read_volume(tmp_path / "out" / case.images[0].name), read_volume(case.images[0])
        assert pred.record.geometry.is_close(image.record.geometry)
        assert set(np.unique(pred.image)) <= set(dataset.labels.values())
    export = {"ckpt_file": root / "models" / "model.pt", "key_in_ckpt": "model", "filepath": tmp_path / "model.ts"}
    export |= {"meta_file": configs / "metadata.json", "config_file": configs / "inference.json"}
    options = {"label_values": common["label_values"], "network_def::channels": [4, 8]}
    run_monai_bundle("ckpt_export", "network_def", **export, **options)
    assert (tmp_path / "model.ts").stat().st_size > 1000


def test_metadata_is_valid_and_describes_the_network(name: str, caplog: pytest.LogCaptureFixture) -> None:
    configs = find_bundle(name) / "configs"
    schema = resource_dir("configs") / "metadata.schema.json"  # MONAI downloads it unless the file exists
    levels = [4, 4, 4, 4, 4] if name == "unet_2015" else [4, 8, 16, 32]
    options = {"config_file": configs / "inference.json", "network_def::channels": levels}
    with caplog.at_level("INFO"):
        run_monai_bundle("verify_metadata", meta_file=configs / "metadata.json", filepath=schema)
        run_monai_bundle("verify_net_in_out", "network_def", meta_file=configs / "metadata.json", **options)
    assert caplog.text.count("no error") == 2


def test_no_property_is_missing_or_misnamed(name: str, data: Path) -> None:
    configs = find_bundle(name) / "configs"
    for config, folder in {"train": data, "evaluate": data, "inference": data / "imagesTr"}.items():
        workflow = ConfigWorkflow(
            config_file=str(configs / f"{config}.json"),
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            workflow_type="train" if config == "train" else "infer",
            dataset_dir=str(folder),
            **{"network_def::channels": [4, 8], **classes_of(data), **({} if config == "inference" else {"folds": 2})},
        )
        workflow.initialize()
        assert workflow.check_properties() == []


def test_two_processes_train_one_network(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine may have fewer GPUs than processes
    configs, root = find_bundle("unet_2d") / "configs", tmp_path / "root"
    options = {"config_file": f"['{configs / 'train.json'}','{configs / 'multi_gpu_train.json'}']", "tracking_uri": ""}
    options |= {"bundle_root": root, "dataset_dir": cells}
    options |= {**SMALL["unet_2d"], **classes_of(cells), **TRAINING}
    run_two_processes(lambda rank: run_monai_bundle("run", "training", **options))
    assert [entry["epoch"] for entry in json.loads((root / "eval" / "history.json").read_text())] == [1, 2]
    state = torch.load(root / "models" / "model.pt", weights_only=True)["model"]
    assert not any(key.startswith("module.") for key in state)


def test_monais_command_uses_init_from_and_tracks_with_mlflow(
    run_2d: Path, cells: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = {"config_file": find_bundle("unet_2d") / "configs" / "train.json", "dataset_dir": cells}
    options |= {"bundle_root": tmp_path / "root", "init_from": run_2d, "tracking": "mlflow"}
    wider = {**SMALL["unet_2d"], "network_def::channels": [4, 16]}
    run_monai_bundle("run", "training", **options, **wider, **classes_of(cells), **TRAINING)
    printed = " ".join(capsys.readouterr())
    assert "encoder.1" in printed and " here, " in printed and " there" in printed
    with sqlite3.connect(tmp_path / "mlruns.db") as database:
        runs = database.execute("select run_uuid, status from runs").fetchall()
        keys: dict[str, set[str]] = {}
        for run, key in database.execute("select distinct run_uuid, key from metrics"):
            keys.setdefault(run, set()).add(key)
    database.close()
    assert len(runs) == 2  # the training and its fold
    assert any({"loss", "lr", "val_mean_dice", "train_loss"} <= own for own in keys.values())
