"""nnU-Net v2's own predictor and export around our networks, needs the extra `bench`.

nnU-Net finds `NNUNetUNet` by the name in its plans, so the repository must be on the PYTHONPATH of its programs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medunet.networks import UNet
from medunet.runtime import load_checkpoint

CONFIGURATION = "3d_fullres"
MIRROR_AXES = (0, 1, 2)
"""nnU-Net's default for volumes: eight views."""


class NNUNetUNet(UNet):
    """medunet's U-Net with the keywords by which nnU-Net builds a network."""

    def __init__(self, input_channels: int, num_classes: int, *, deep_supervision: bool = False, **options: Any):
        super().__init__(in_channels=input_channels, out_channels=num_classes, **options)


def available() -> bool:
    """Whether nnU-Net is installed; its folders are named, as it asks for them at import."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, ".")
    # its default is eight threads and processes, whatever the machine
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, len(os.sched_getaffinity(0)))))
    try:
        import nnunetv2  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


def plans(patch_size: tuple[int, ...], spacing_mm: tuple[float, ...], arguments: dict[str, Any]) -> dict[str, Any]:
    """Plans as `nnUNetv2_plan_experiment` writes them, resampling as it does by default; axes in the order of ours."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": list(patch_size),
        "spacing": list(spacing_mm),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "batch_dice": False,
        "architecture": {
            "network_class_name": f"{__name__}.{NNUNetUNet.__name__}",
            "arch_kwargs": arguments,
            "_kw_requires_import": [],
        },
    }
    return {
        "dataset_name": "Dataset001_bench",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing_mm),
        "original_median_shape_after_transp": list(patch_size),
        "image_reader_writer": "SimpleITKIO",
        # SimpleITK's arrays come as z, y, x; our networks see x, y, z
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
        },
    }


def dataset_json(classes: int) -> dict[str, Any]:
    """The little of `dataset.json` that prediction reads."""
    labels = {"background": 0, **{f"class_{index}": index for index in range(1, classes)}}
    return {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


class NNUNet:
    """nnU-Net's predictor with the given network; its image is preprocessed already.

    Args:
        network: takes `patch_size`.
        classes: that the network tells apart.
        patch_size: voxels of a window.
        spacing_mm: of the network's grid.
        mirroring: average eight views, nnU-Net's default.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int,
        patch_size: tuple[int, ...],
        spacing_mm: tuple[float, ...],
        mirroring: bool,
    ) -> None:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: PLC0415
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: PLC0415

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints advice for CUDA
            self.predictor = nnUNetPredictor(device=device, use_mirroring=mirroring, allow_tqdm=False)
        manager = PlansManager(plans(patch_size, spacing_mm, {}))
        self.predictor.manual_initialization(
            network,
            manager,
            manager.get_configuration(CONFIGURATION),
            [network.state_dict()],
            dataset_json(classes),
            "nnUNetTrainer",
            MIRROR_AXES,
        )

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Sliding window over `(1, *grid)`: `(classes, *grid)`, half precision, as nnU-Net keeps it."""
        return torch.as_tensor(self.predictor.predict_logits_from_preprocessed_data(image))

    def export(
        self, logits: torch.Tensor, *, source_size: tuple[int, ...], source_spacing_mm: tuple[float, ...]
    ) -> npt.NDArray[np.integer]:
        """Resample the logits of every class to the source grid and take the largest: `(*source)` labels."""
        from nnunetv2.inference.export_prediction import (  # noqa: PLC0415
            convert_predicted_logits_to_segmentation_with_correct_shape,
        )

        predictor = self.predictor
        properties = {
            "spacing": source_spacing_mm[::-1],
            "shape_before_cropping": source_size,
            "shape_after_cropping_and_before_resampling": source_size,
            "bbox_used_for_cropping": [[0, n] for n in source_size],
        }
        labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.label_manager,
            properties,
            num_threads_torch=torch.get_num_threads(),
        )
        return np.asarray(labels).transpose(2, 1, 0)

    def labels(
        self, image: torch.Tensor, *, source_size: tuple[int, ...], source_spacing_mm: tuple[float, ...]
    ) -> tuple[npt.NDArray[np.integer], float]:
        """Labels on the source grid, and the seconds of the export."""
        logits = self.logits(image)
        begun = time.perf_counter()
        labels = self.export(logits, source_size=source_size, source_spacing_mm=source_spacing_mm)
        return labels, time.perf_counter() - begun


def write_model(folder: Path, run: Path) -> None:
    """A trained run of medunet as a trained model of nnU-Net, for `nnUNetv2_predict_from_modelfolder`."""
    config = json.loads((run / "configs" / "inference.json").read_text())
    arguments = {
        key: _resolved(value, config)
        for key, value in config["network_def"].items()
        if key not in ("_target_", "in_channels", "out_channels")
    }
    spacing, patch = tuple(config["spacing_mm"]), tuple(config["patch_size"])
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans(patch, spacing, arguments)))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(len(config["label_values"]))))
    weights = load_checkpoint(run / "models" / "model.pt")
    checkpoint = {
        "network_weights": weights.get("model", weights),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": MIRROR_AXES,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def _resolved(value: Any, config: dict[str, Any]) -> Any:
    """Follow a reference of the config to a plain value."""
    while isinstance(value, str) and value.startswith("@"):
        value = config[value[1:]]
    return value
