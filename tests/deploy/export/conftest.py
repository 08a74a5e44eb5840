"""Bundles with random weights: padded, unpadded, and one with parts that engines handle differently."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, specialise
from medunet.deploy.export import export_bundle

EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def needs(name: str) -> None:
    """Skip the test if packages of a format are absent."""
    wanted = {"onnx": EXPORT_PACKAGES, "openvino": ("openvino",)}.get(name, ())
    absent = [package for package in wanted if importlib.util.find_spec(package) is None]
    if absent:
        pytest.skip(f"absent: {', '.join(absent)}; pip install 'medunet[export,openvino]'")


def with_weights(shipped: str, folder: Path, changes: dict[str, Any], *, seed: int = 0) -> Path:
    """Copy a shipped bundle with random weights; batch norms have statistics as after training."""
    run = specialise(find_bundle(shipped), folder, changes)
    parser = ConfigParser()
    parser.read_config(str(run / "configs" / "inference.json"))
    torch.manual_seed(seed)
    network = parser.get_parsed_content("network_def")
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
    (run / "models").mkdir()
    torch.save({"model": network.state_dict()}, run / "models" / "model.pt")
    return run


@pytest.fixture(scope="session")
def onnx_files(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Export a bundle once; an export to ONNX takes seconds."""
    folder = tmp_path_factory.mktemp("onnx")

    def export(kind: str) -> Path:
        needs("onnx")
        path = folder / f"{kind}.onnx"
        if not path.exists():
            export_bundle(bundles[kind], path, to="onnx")
        return path

    return export


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    small = {"network_def::channels": [4, 8, 12], "autocast_dtype": "float32"}
    odd = {
        **small,
        "network_def::norm": "instance",
        "network_def::upsample": "linear",
        "network_def::strides": [[2, 2, 1], 2],
        "network_def::kernel_sizes": [[3, 3, 1], 3, 3],
        "network_def::act": ["leakyrelu", {"negative_slope": 0.1}],
        "network_def::downsample": "conv",
    }
    return {
        "padded": with_weights("unet_3d", folder / "padded", {**small, "patch_size": [16, 20, 24]}),
        "unpadded": with_weights("unet_2015", folder / "unpadded", {**small, "patch_size": [92, 92]}),
        "odd": with_weights("unet_3d", folder / "odd", {**odd, "patch_size": [16, 20, 24]}),
    }
