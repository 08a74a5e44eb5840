"""nnU-Net's trainer with AdamW for 300 steps, for `scripts.bench.nnunet_models`: it learns something within minutes."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam


class nnUNetTrainerShort(nnUNetTrainerAdam):
    """Four epochs of 75 steps with a larger learning rate; what else nnU-Net does stays."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr, self.num_epochs = 3e-3, 4
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 75, 5
