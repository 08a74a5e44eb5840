"""MONAI's own commands on the shipped bundles, as a researcher types them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from medunet.bundle import find_bundle, resource_dir
from medunet.datasets import open_dataset, write_phantom_dataset
from medunet.io import read_volume

# as small as the pipeline allows; what is trained here is the plumbing
SMALL = {
    "unet_3d": {"network_def::channels": "[4,8]", "patch_size": "[16,16,16]"},
    "unet_2d": {"network_def::channels": "[4,8]", "patch_size": "[32,32]"},
    # two levels: 40 in, 24 out
    "unet_2015": {"network_def::channels": "[4,8]", "patch_size": "[40,40]", "tile_size": "[40,40]"},
}
TRAINING = {"epochs": "2", "steps_per_epoch": "2", "batch_size": "2", "val_interval": "1", "folds": "3"}


def monai_bundle(*words: str, launcher: tuple[str, ...] = (), on_cpu: bool = False, **options: object) -> str:
    command = [sys.executable, *(launcher or ("-m",)), "monai.bundle", *words]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    if on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def make_data(folder: Path, bundle: str) -> tuple[Path, dict[str, str]]:
    """Three cases, and the options that tell a bundle of their classes."""
    if bundle == "unet_3d":
        write_phantom_dataset(folder, kind="ct", cases=3, size=(32, 32, 24))
    else:
        write_phantom_dataset(folder, kind="cells", cases=3, size=(64, 64))
    labels = open_dataset(folder).labels
    names = json.dumps(list(labels)).replace('"', "'")
    return folder, {"label_values": str(list(labels.values())), "label_names": names}


@pytest.mark.parametrize("name", list(SMALL))
def test_train_evaluate_predict_export(name: str, tmp_path: Path) -> None:
    data, classes = make_data(tmp_path / "data", name)
    configs, root = find_bundle(name) / "configs", tmp_path / "root"
    common = {"bundle_root": root, **SMALL[name], **classes}

    monai_bundle("run", "training", config_file=configs / "train.json", dataset_dir=data, **common, **TRAINING)
    assert torch.load(root / "models" / "model.pt", weights_only=True).keys() == {"model"}
    assert [entry["epoch"] for entry in json.loads((root / "eval" / "history.json").read_text())] == [1, 2]

    evaluate = {"config_file": configs / "evaluate.json", "dataset_dir": data, "folds": 3}
    monai_bundle("run", "evaluating", **evaluate, **common)
    # MONAI's MetricsSaver: a row a case
    rows = (root / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()
    assert len(rows) == 2

    inference = {"config_file": configs / "inference.json", "dataset_dir": data / "imagesTr"}
    monai_bundle("run", "inference", **inference, prediction_dir=tmp_path / "out", **common)
    dataset = open_dataset(data)
    for case in dataset.cases:
        pred = read_volume(tmp_path / "out" / case.images[0].name)
        image = read_volume(case.images[0])
        assert pred.record.geometry.is_close(image.record.geometry)
        assert set(np.unique(pred.image)) <= set(dataset.labels.values())

    network = {"network_def::channels": "[4,8]", "label_values": classes["label_values"]}
    monai_bundle(
        *("ckpt_export", "network_def"),
        filepath=tmp_path / "model.ts",
        ckpt_file=root / "models" / "model.pt",
        meta_file=configs / "metadata.json",
        config_file=configs / "inference.json",
        key_in_ckpt="model",
        **network,
    )
    assert (tmp_path / "model.ts").stat().st_size > 1000


@pytest.mark.parametrize("name", list(SMALL))
def test_metadata_is_valid_and_says_what_the_network_does(name: str, tmp_path: Path) -> None:
    configs = find_bundle(name) / "configs"
    # MONAI downloads the schema unless the file is there
    schema = resource_dir("configs") / "metadata.schema.json"
    assert "no error" in monai_bundle("verify_metadata", meta_file=configs / "metadata.json", filepath=schema)
    size = {"network_def::channels": "[4,8,16,32]"} if name != "unet_2015" else {"network_def::channels": "[4,4,4,4,4]"}
    out = monai_bundle(
        "verify_net_in_out",
        "network_def",
        meta_file=configs / "metadata.json",
        config_file=configs / "inference.json",
        **size,
    )
    assert "no error" in out


@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.filterwarnings("ignore")
def test_no_property_is_missing_or_misnamed(name: str, tmp_path: Path) -> None:
    data, _ = make_data(tmp_path / "data", name)
    labels = open_dataset(data).labels
    classes = {"label_values": list(labels.values()), "label_names": list(labels)}
    configs = find_bundle(name) / "configs"
    folders = {"train": data, "evaluate": data, "inference": data / "imagesTr"}
    for config, folder in folders.items():
        kind = "train" if config == "train" else "infer"
        workflow = ConfigWorkflow(
            config_file=str(configs / f"{config}.json"),
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            workflow_type=kind,
            dataset_dir=str(folder),
            **{"network_def::channels": [4, 8], **classes, **({} if config == "inference" else {"folds": 3})},
        )
        workflow.initialize()
        assert workflow.check_properties() == []


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    data, classes = make_data(tmp_path / "data", "unet_2d")
    configs = find_bundle("unet_2d") / "configs"
    files = f"['{configs / 'train.json'}','{configs / 'multi_gpu_train.json'}']"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    options = {"config_file": files, "bundle_root": tmp_path / "root", "dataset_dir": data, **SMALL["unet_2d"]}
    # a machine may have fewer GPUs than processes
    monai_bundle("run", "training", launcher=launcher, on_cpu=True, ema_decay=0.9, **options, **classes, **TRAINING)
    history = json.loads((tmp_path / "root" / "eval" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    state = torch.load(tmp_path / "root" / "models" / "model.pt", weights_only=True)["model"]
    assert not any(key.startswith("module.") for key in state)


def test_monai_starts_from_another_run_and_says_what_does_not_fit(tmp_path: Path) -> None:
    data, classes = make_data(tmp_path / "data", "unet_2d")
    configs = find_bundle("unet_2d") / "configs"
    common = {"config_file": configs / "train.json", "dataset_dir": data, "tracking_uri": "", **SMALL["unet_2d"]}
    monai_bundle("run", "training", bundle_root=tmp_path / "first", **common, **classes, **TRAINING)
    wider = {**common, "network_def::channels": "[4,16]", "init_from": tmp_path / "first"}
    shown = monai_bundle("run", "training", bundle_root=tmp_path / "second", **wider, **classes, **TRAINING)
    assert "encoder.1" in shown
    assert "here" in shown and "there" in shown


def test_monai_tracking_and_ours_share_one_run(tmp_path: Path) -> None:
    data, classes = make_data(tmp_path / "data", "unet_2d")
    configs = find_bundle("unet_2d") / "configs"
    options = {"config_file": configs / "train.json", "bundle_root": tmp_path / "root", "dataset_dir": data}
    monai_bundle("run", "training", tracking="mlflow", **options, **SMALL["unet_2d"], **classes, **TRAINING)
    with sqlite3.connect(tmp_path / "mlruns.db") as database:
        runs = database.execute("select run_uuid, status from runs").fetchall()
        keys: dict[str, set[str]] = {}
        for run, key in database.execute("select distinct run_uuid, key from metrics"):
            keys.setdefault(run, set()).add(key)
    database.close()
    assert len(runs) == 2  # the training and its fold
    assert any({"loss", "lr", "val_mean_dice", "train_loss"} <= found for found in keys.values())
