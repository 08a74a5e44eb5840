"""Settings and bundles so small that a test trains or predicts with them in a second."""

from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, specialise
from medunet.config import read_json
from medunet.datasets import open_dataset
from medunet.runtime import save_weights

SHORT = {"steps_per_epoch": 2, "batch_size": 2, "val_interval": 1}
# changes to `unet_2d` for training runs of half a second on phantoms of 48 x 48
SMALL_2D: dict[str, Any] = {"network_def::channels": [4, 8], "patch_size": [32, 32], **SHORT}
# changes to `unet_3d` for training runs of a second on phantoms of about 32 x 32 x 24
SMALL_3D: dict[str, Any] = {**SMALL_2D, "patch_size": [16, 16, 16]}


def narrow(bundle: Path, **changes: Any) -> dict[str, Any]:
    """Return changes to a planned bundle: one short epoch of a narrow network with the levels of the plan."""
    levels = len(read_json(bundle / "configs" / "train.json")["network_def"]["channels"])
    return {"epochs": 1, **SHORT, "network_def::channels": [4] * levels, **changes}


def classes_of(data: Path) -> dict[str, Any]:
    """Return the classes of a data set as config values."""
    labels = open_dataset(data).labels
    return {"label_values": list(labels.values()), "label_names": list(labels)}


def untrained_run(folder: Path, *, seed: int = 0, bundle: str = "unet_3d", **changes: Any) -> Path:
    """Write a run of a shipped bundle in two levels, with random weights."""
    axes = 2 if bundle == "unet_2d" else 3
    small = {"network_def::channels": [4, 8], "patch_size": [16] * axes, "autocast_dtype": "float32"}
    run = specialise(find_bundle(bundle), folder, {**small, **changes})
    parser = ConfigParser()
    parser.read_config(str(run / "configs" / "inference.json"))
    torch.manual_seed(seed)
    save_weights(parser.get_parsed_content("network_def").state_dict(), run / "models" / "model.pt")
    return run
