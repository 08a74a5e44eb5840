"""Training loops for comparison; each function runs a number of steps and returns their seconds."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Events
from monai.data import CacheDataset
from monai.engines import SupervisedTrainer
from monai.losses import DeepSupervisionLoss, DiceCELoss

from .data import monai_chain, parse

Run = Callable[[int], list[float]]

HANDLERS = ["EpochSeeder", "IntensityHandler", "LrScheduleHandler"]
"""Of our training; the others write files, validate and track, which nnU-Net's and MONAI's steps here do not either."""

_finish: list[Callable[[], Any]] = []


@dataclass(frozen=True)
class Setting:
    """What all of them train, as nnU-Net has planned it.

    Args:
        architecture: nnU-Net's keywords of its network, axes in the order z, y, x.
        patch_size: voxels, z, y, x.
        batch_size: patches a step.
    """

    architecture: dict[str, Any]
    patch_size: tuple[int, ...]
    batch_size: int

    @classmethod
    def from_nnunet(cls, preprocessed: Path) -> Setting:
        """Read nnU-Net's plans."""
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())["configurations"]["3d_fullres"]
        return cls(plans["architecture"]["arch_kwargs"], tuple(plans["patch_size"]), plans["batch_size"])

    def describe(self) -> dict[str, Any]:
        """For the results."""
        channels = self.architecture["features_per_stage"]
        return {"patch_size": list(self.patch_size), "batch_size": self.batch_size, "channels": channels}

    def nnunet_network(self) -> dict[str, Any]:
        """nnU-Net's network for a config, axes in the order x, y, z."""
        arguments = dict(self.architecture)
        for key in ("kernel_sizes", "strides"):
            arguments[key] = [list(reversed(values)) for values in arguments[key]]
        for key in ("conv_op", "norm_op", "nonlin"):
            arguments[key] = f"${arguments[key]}"
        return {
            "_target_": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "input_channels": 1,
            "num_classes": 3,
            "deep_supervision": True,
            **arguments,
        }

    def own_network(self) -> dict[str, Any]:
        """The same widths, strides and heads as `medunet plan` would have them: with batch norm."""
        return {
            "_target_": "medunet.networks.UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": self.architecture["features_per_stage"],
            "strides": [list(reversed(values)) for values in self.architecture["strides"][1:]],
            "kernel_sizes": [list(reversed(values)) for values in self.architecture["kernel_sizes"]],
            "norm": "batch",
            "deep_supervision": len(self.architecture["features_per_stage"]) - 2,
        }


def nnunet(setting: Setting, data: Path, work: Path) -> Run:
    """nnU-Net's trainer and its data loader with worker processes, as `nnUNetv2_train -device cpu` runs them."""
    from nnunetv2.run.run_training import get_trainer_from_args  # noqa: PLC0415

    with contextlib.redirect_stdout(io.StringIO()):
        trainer = get_trainer_from_args("4", "3d_fullres", 0, device=torch.device("cpu"))
        trainer.initialize()
        trainer.on_train_start()
        trainer.on_train_epoch_start()

    def run(steps: int) -> list[float]:
        trainer.network.train()
        seconds = []
        for _ in range(steps):
            begun = time.perf_counter()
            trainer.train_step(next(trainer.dataloader_train))
            seconds.append(time.perf_counter() - begun)
        return seconds

    _finish.append(trainer.dataloader_train._finish)
    _finish.append(trainer.dataloader_val._finish)
    return run


def medunet(
    network: Callable[[Setting], dict[str, Any]], *, compiled: bool = False
) -> Callable[[Setting, Path, Path], Run]:
    """Our training config with a network and nnU-Net's patch and batch."""

    def build(setting: Setting, data: Path, work: Path) -> Run:
        parser, _ = parse("hippocampus", data.parent, cases=1)
        parser.update(
            {
                "dataset_dir": str(data),
                "store_dir": str(work / "store"),
                "patch_size": list(reversed(setting.patch_size)),
                "batch_size": setting.batch_size,
                "batch_intensity": True,
                "epochs": 1000,
                "steps_per_epoch": 250,
                "compile": compiled,
            }
        )
        parser["imports"] = [*parser["imports"], "$import torch.nn.modules", "$import dynamic_network_architectures"]
        parser["network_def"] = network(setting)
        handlers = parser["train#handlers"]
        parser["train#handlers"] = [entry for entry in handlers if entry["_target_"].split(".")[-1] in HANDLERS]
        torch.manual_seed(0)
        parser.get_parsed_content("train#dataset").prepare()
        return _stepwise(parser.get_parsed_content("train#trainer"))

    return build


def plain_monai(setting: Setting, data: Path, work: Path) -> Run:
    """What MONAI's tutorials do: a cache, crops by label, affine and elastic changes, two workers, float32."""
    parser, items = parse("hippocampus", data.parent, cases=160)
    size = list(reversed(setting.patch_size))
    dataset = CacheDataset(items, monai_chain(parser, size, tuned=False), progress=False, num_workers=2)
    loader = monai.data.DataLoader(
        dataset, batch_size=setting.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    parser["imports"] = [*parser["imports"], "$import torch.nn.modules", "$import dynamic_network_architectures"]
    parser["network_def"] = setting.nnunet_network()
    network = parser.get_parsed_content("network_def")
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1000,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 1e-3),
        loss_function=loss,
    )
    return _stepwise(trainer)


def _stepwise(trainer: SupervisedTrainer) -> Run:
    """Run an engine some steps at a time; a step's seconds hold those of its data."""
    seconds: list[float] = []
    left = last = 0.0

    def completed(engine: Any) -> None:
        nonlocal left, last
        now = time.perf_counter()
        seconds.append(now - last)
        last, left = now, left - 1
        if left <= 0:
            engine.interrupt()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, completed)

    def run(steps: int) -> list[float]:
        nonlocal left, last
        seconds.clear()
        left, last = steps, time.perf_counter()
        trainer.run()
        return list(seconds)

    return run


SYSTEMS: dict[str, Callable[[Setting, Path, Path], Run]] = {
    "nnU-Net": nnunet,
    "medunet, nnU-Net's network": medunet(Setting.nnunet_network),
    "medunet, nnU-Net's network, compiled": medunet(Setting.nnunet_network, compiled=True),
    "medunet, its own with the same widths": medunet(Setting.own_network),
    "medunet, its own with the same widths, compiled": medunet(Setting.own_network, compiled=True),
    "MONAI, plain": plain_monai,
}


def close() -> None:
    """Stop the processes that nnU-Net has started."""
    with contextlib.redirect_stdout(io.StringIO()):
        for finish in _finish:
            finish()
