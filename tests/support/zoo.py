"""Bundles as MONAI's model zoo has them, with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

LOAD = {"_target_": "LoadImaged", "keys": "image"}
Config = dict[str, Any]


def zoo_config(spatial_dims: int = 3) -> Config:
    grid: list[Config] = [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
    ]
    network = {"_target_": "UNet", "spatial_dims": spatial_dims, "in_channels": 1, "out_channels": 2}
    network |= {"channels": [4, 8], "strides": [2], "norm": "batch"}
    first = [LOAD, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    save = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "trans"}
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "device": "$torch.device('cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": first + (grid if spatial_dims == 3 else [])},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in sorted(glob.glob(@dataset_dir + '/*'))]"}
        | {"transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16] * spatial_dims, "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [invert, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, save],
        },
        "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader"}
        | {"network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing"},
        "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}
        | {"load_dict": {"model": "@network"}},
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }


def write_zoo_bundle(
    folder: Path, change: Callable[[Config], object] = lambda config: None, *, spatial_dims: int = 3, text: Any = json
) -> Path:
    config = zoo_config(spatial_dims)
    parser = ConfigParser(config)
    torch.manual_seed(1)
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")
    change(config)
    shape = [16] * spatial_dims
    tensor: Config = {"type": "image", "format": "hounsfield", "spatial_shape": shape, "dtype": "float32"}
    pred = tensor | {"num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}
    metadata: Config = {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20220324.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "first"},
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "optional_packages_version": {"nibabel": "5.2.1"},
        "task": "segmentation",
        "description": "synthetic",
        "authors": "nobody",
        "copyright": "none",
        "network_data_format": {"inputs": {"image": tensor | {"num_channels": 1}}, "outputs": {"pred": pred}},
    }
    suffix = ".json" if text is json else ".yaml"
    (folder / "configs" / f"inference{suffix}").write_text(text.dumps(config) if text is json else text.dump(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "docs").mkdir()
    for name in ("LICENSE", "docs/README.md"):
        (folder / name).write_text("none\n")
    return folder
