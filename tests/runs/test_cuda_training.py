"""A bundle trains on a GPU: in every number format, and by NCCL."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_torchrun
from small import SMALL_2D, classes_of

from medunet.bundle import find_bundle
from medunet.runs import train_bundle
from medunet.runtime import load_checkpoint

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]
ONE_STEP: dict[str, Any] = {**SMALL_2D, "epochs": 1, "steps_per_epoch": 1, "folds": 2, "num_workers": 0}
ONE_STEP["tracking_uri"] = ""


@pytest.mark.parametrize("dtype", ["float32", "float16", "auto"])
def test_a_step_gives_a_finite_loss_and_finite_weights(cells: Path, tmp_path: Path, dtype: str) -> None:
    changes = {**ONE_STEP, "autocast_dtype": dtype}
    result = train_bundle(find_bundle("unet_2d"), cells, tmp_path / "run", changes=changes, device="cuda")
    [epoch] = result.history
    assert math.isfinite(epoch["loss"])
    weights = load_checkpoint(result.run / "models" / "model.pt")["model"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert all(tensor.device.type == "cpu" for tensor in weights.values())


def test_one_process_of_torchrun_trains_with_nccl(cells: Path, tmp_path: Path) -> None:
    configs, root = find_bundle("unet_2d") / "configs", tmp_path / "root"
    options = {"config_file": f"['{configs / 'train.json'}','{configs / 'multi_gpu_train.json'}']", **classes_of(cells)}
    run_torchrun("run", "training", processes=1, bundle_root=root, dataset_dir=cells, **options, **ONE_STEP)
    [epoch] = json.loads((root / "eval" / "history.json").read_text())
    assert math.isfinite(epoch["loss"])
    weights = load_checkpoint(root / "models" / "model.pt")["model"]
    assert not any(name.startswith("module.") for name in weights)
