"""A training small enough to be run many times in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted

from medunet.training import (
    CheckpointHandler,
    EarlyStop,
    EpochSeeder,
    Evaluator,
    RepeatSampler,
    Trainer,
    ValidationHandler,
    WeightAverage,
    WeightsTransfer,
)


def make_network(classes: int = 2, channels: int = 1) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, classes, 1)
    )


@pytest.fixture
def make_validated() -> Callable[..., Trainer]:
    """A trainer with batch norm, validation and weight averaging, as the shipped config puts them together."""

    def make(
        folder: Path,
        *,
        epochs: int = 2,
        resume: bool = False,
        decay: float = 0.99,
        patience: int = 0,
        interval: int = 1,
        learning_rate: float = 0.01,
        init_from: Path | None = None,
        network: torch.nn.Module | None = None,
    ) -> Trainer:
        network = make_network() if network is None else network
        generator = torch.Generator().manual_seed(0)
        images = [torch.randn(1, 8, 8, generator=generator) for _ in range(6)]
        data: list[dict[str, Any]] = [{"image": image, "label": (image > 0).long()} for image in images]
        device, dataset = torch.device("cpu"), Dataset(data)
        validator = Evaluator(
            device=device,
            val_data_loader=DataLoader(Dataset(data[:2]), batch_size=1),
            network=network,
            key_val_metric={"dice": MeanDice(num_classes=2, output_transform=from_engine(["pred", "label"]))},
            postprocessing=AsDiscreted(keys="pred", argmax=True),
            autocast_dtype="float32",
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        sampler = RepeatSampler(len(dataset), num_samples=8, seed=3)
        average = WeightAverage(network, decay=decay, validator=validator)
        handlers = [
            CheckpointHandler(
                str(folder), network, optimizer=optimizer, average=average, validator=validator, resume=resume
            ),
            WeightsTransfer(init_from, network),
            EpochSeeder(3, dataset, sampler=sampler),
            ValidationHandler(interval=interval, validator=validator),
            EarlyStop(patience, validator=validator, interval=interval),
        ]
        return Trainer(
            device=device,
            max_epochs=epochs,
            train_data_loader=DataLoader(dataset, batch_size=2, sampler=sampler),
            network=network,
            optimizer=optimizer,
            loss_function=lambda pred, label: torch.nn.functional.cross_entropy(pred, label[:, 0]),
            train_handlers=handlers,
            autocast_dtype="float32",
            decollate=False,
        )

    return make
