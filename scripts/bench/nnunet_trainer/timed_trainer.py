"""nnU-Net's own trainer with its schedule fitted to minutes instead of 250,000 steps, for `scripts.bench.training`.

nnU-Net finds it by `nnUNet_extTrainer=scripts/bench/nnunet_trainer nnUNetv2_train ... -tr nnUNetTrainerTimed`; the
variable BENCH_MINUTES has the duration.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerTimed(nnUNetTrainer):
    """Learning rate 0.01 * (1 - elapsed / all)^0.9, by the clock; what else nnU-Net does stays."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.seconds = 60 * float(os.environ["BENCH_MINUTES"])
        # short epochs, so that the curve has points; fewer patches of validation than its 50 a 250, in the same ratio
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 2
        self.curve: list[dict[str, Any]] = []

    def run_training(self) -> None:
        """Train until the time is over, validation steps and checkpoints included."""
        self.on_train_start()
        begun = time.monotonic()
        while (elapsed := time.monotonic() - begun) < self.seconds:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            for _ in range(self.num_iterations_per_epoch):
                share = min(1.0, (time.monotonic() - begun) / self.seconds)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - share) ** 0.9
                outputs.append(self.train_step(next(self.dataloader_train)))
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                steps = range(self.num_val_iterations_per_epoch)
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in steps])
            self.on_epoch_end()
            dice = [float(value) for value in self.logger.get_value("dice_per_class_or_region", step=-1)]
            elapsed = time.monotonic() - begun
            step = self.current_epoch * self.num_iterations_per_epoch
            self.curve.append({"seconds": round(elapsed, 1), "step": step, "pseudo_dice": dice})
            Path(self.output_folder, "curve.json").write_text(json.dumps(self.curve), encoding="utf-8")
        self.on_train_end()
