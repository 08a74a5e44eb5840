"""Settings and bundles so small that a test trains or predicts with them in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, specialise
from medunet.runtime import save_weights

SMALL_2D: dict[str, Any] = {
    "network_def::channels": [4, 8],
    "patch_size": [32, 32],
    "steps_per_epoch": 2,
    "batch_size": 2,
    "val_interval": 1,
}
"""Changes to `unet_2d` for training runs of half a second on phantoms of 48 x 48."""

SMALL_3D: dict[str, Any] = {**SMALL_2D, "patch_size": [16, 16, 16]}
"""Changes to `unet_3d` for training runs of a second on phantoms of about 32 x 32 x 24."""


def untrained_run(folder: Path, *, shipped: str = "unet_3d", seed: int = 0, **changes: Any) -> Path:
    """A run of a shipped bundle (`unet_3d` has three classes) in two levels, its weights drawn by seed."""
    patch = [16] * (3 if shipped == "unet_3d" else 2)
    small = {"network_def::channels": [4, 8], "patch_size": patch, "autocast_dtype": "float32"}
    run = specialise(find_bundle(shipped), folder, {**small, **changes})
    parser = ConfigParser()
    parser.read_config(str(run / "configs" / "inference.json"))
    torch.manual_seed(seed)
    save_weights(parser.get_parsed_content("network_def").state_dict(), run / "models" / "model.pt")
    return run
