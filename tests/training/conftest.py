"""A training run small enough to be repeated many times in a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import Dataset
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted

from medunet.training import (
    CheckpointHandler,
    DataLoader,
    EarlyStop,
    EpochSeeder,
    Evaluator,
    Muon,
    RepeatSampler,
    Trainer,
    ValidationHandler,
    WeightsTransfer,
)


def items(count: int = 6, size: int = 8) -> list[dict[str, Any]]:
    images = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(1, size, size)
    return [{"image": x, "label": (x > 0).long(), "weight": weight, "name": f"case_{i}"} for i, x in enumerate(images)]


def cross_entropy(pred: torch.Tensor, label: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(pred, label[:, 0])


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """A trainer with batch norm and validation, put together as in the shipped config."""

    def make(
        folder: Path,
        *,
        epochs: int = 2,
        resume: bool = False,
        patience: int = 0,
        interval: int = 1,
        learning_rate: float = 0.01,
        init_from: Path | None = None,
        dropout: float = 0.0,
        dataset: Any = None,
        workers: int = 0,
        device: str = "cpu",
        **options: Any,
    ) -> Trainer:
        torch.manual_seed(1)
        layers = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)
        network = torch.nn.Sequential(*layers, torch.nn.Dropout(dropout)).to(device)
        dataset = Dataset(items()) if dataset is None else dataset
        validator = Evaluator(
            device=torch.device(device),
            val_data_loader=DataLoader(Dataset(items()[:2]), batch_size=1),
            network=network,
            key_val_metric={"dice": MeanDice(num_classes=2, output_transform=from_engine(["pred", "label"]))},
            postprocessing=AsDiscreted(keys="pred", argmax=True),
            autocast_dtype="float32",
        )
        optimizer = Muon(network.parameters(), lr=learning_rate)
        sampler = RepeatSampler(len(dataset), num_samples=8, seed=3)
        handlers = [
            CheckpointHandler(str(folder), network, optimizer=optimizer, resume=resume, validator=validator),
            WeightsTransfer(init_from, network),
            EpochSeeder(3, dataset, sampler=sampler),
            ValidationHandler(interval=interval, validator=validator),
            EarlyStop(patience, validator=validator, interval=interval),
        ]
        defaults = {"loss_function": cross_entropy, "autocast_dtype": "float32"}
        return Trainer(
            device=torch.device(device),
            max_epochs=epochs,
            train_data_loader=DataLoader(dataset, workers, batch_size=2, sampler=sampler),
            network=network,
            optimizer=optimizer,
            train_handlers=handlers,
            **defaults | options,
        )

    return make
