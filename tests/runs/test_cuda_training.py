"""A bundle trains on a GPU: in every number format, and by NCCL."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.runs import train_bundle
from medunet.runtime import load_checkpoint

from .test_commands import make_data, monai_bundle

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]

DEVICE = "cuda"
ONE_STEP: dict[str, Any] = {**SMALL_2D, "epochs": 1, "steps_per_epoch": 1, "folds": 3, "num_workers": 0}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "data"
    write_phantom_dataset(folder, kind="cells", cases=3, size=(64, 64))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "auto"])
def test_a_step_gives_a_finite_loss_and_finite_weights(cells: Path, tmp_path: Path, dtype: str) -> None:
    changes = {**ONE_STEP, "autocast_dtype": dtype}
    result = train_bundle(find_bundle("unet_2d"), cells, tmp_path / "run", changes=changes, device=DEVICE)
    [epoch] = result.history
    assert math.isfinite(epoch["loss"])
    weights = load_checkpoint(result.run / "models" / "model.pt")["model"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert all(tensor.device.type == "cpu" for tensor in weights.values())


def test_one_process_of_torchrun_trains_by_nccl(tmp_path: Path) -> None:
    data, classes = make_data(tmp_path / "data", "unet_2d")
    configs = find_bundle("unet_2d") / "configs"
    files = f"['{configs / 'train.json'}','{configs / 'multi_gpu_train.json'}']"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m")
    options = {"config_file": files, "bundle_root": tmp_path / "root", "dataset_dir": data, "tracking_uri": ""}
    monai_bundle("run", "training", launcher=launcher, **options, **classes, **ONE_STEP)
    [epoch] = json.loads((tmp_path / "root" / "eval" / "history.json").read_text())
    assert math.isfinite(epoch["loss"])
    weights = load_checkpoint(tmp_path / "root" / "models" / "model.pt")["model"]
    assert not any(name.startswith("module.") for name in weights)
