"""nnU-Net's trainer with AdamW for BENCH_STEPS steps, a few minutes, for `scripts.bench.nnunet_models`."""

from __future__ import annotations

import os
from typing import Any

from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam


class nnUNetTrainerShort(nnUNetTrainerAdam):
    """Four epochs with a learning rate of 0.003; what else nnU-Net does stays."""

    def configure_optimizers(self) -> Any:
        """Return AdamW and nnU-Net's schedule, fitted to the four epochs; called before the first step."""
        self.initial_lr, self.num_epochs = 3e-3, 4
        self.num_iterations_per_epoch = int(os.environ["BENCH_STEPS"]) // 4
        self.num_val_iterations_per_epoch = 5
        return super().configure_optimizers()
