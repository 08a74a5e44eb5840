"""nnU-Net's trainer with AdamW for 300 steps, for `scripts.bench.nnunet_models`: it learns something within minutes."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam


class nnUNetTrainerShort(nnUNetTrainerAdam):
    """Four epochs of 75 steps with a learning rate of 0.003; what else nnU-Net does stays."""

    def configure_optimizers(self) -> Any:
        """Return AdamW and nnU-Net's schedule, fitted to the four epochs; called before the first step."""
        self.initial_lr, self.num_epochs = 3e-3, 4
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 75, 5
        return super().configure_optimizers()
