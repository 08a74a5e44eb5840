"""Handlers that MONAI lacks: reproducible epochs, a history file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medunet.files import write_atomically

from .processes import mean_of_processes

HISTORY_NAME = "history.json"
"""One dictionary an epoch, in the training's output folder."""


class EpochSeeder:
    """Makes every epoch's randomness a function of seed, epoch and rank alone.

    So a training that was stopped and resumed draws the same patches as one that ran through, and two runs with the
    same seed are equal on one machine.

    Args:
        seed: any non-negative number.
        dataset: a dataset whose ``transform`` is a ``monai.transforms.Compose``.
        sampler: an optional distributed sampler, told of the epoch.
        rank: of this process, so that processes draw different deformations.
    """

    def __init__(self, seed: int, dataset: Any, *, sampler: Any = None, rank: int = 0) -> None:
        self.seed = seed
        self.dataset = dataset
        self.sampler = sampler
        self.rank = rank

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Seed torch (shuffling, dropout, worker processes) and the transforms."""
        epoch = engine.state.epoch
        # large odd steps keep (seed, epoch, rank) apart; numpy wants less than 2**32
        seed = (self.seed + 1_000_003 * epoch + 7_919 * self.rank) % 2**32
        torch.manual_seed(seed)
        transform = getattr(self.dataset, "transform", None)
        if transform is not None and hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


class HistoryHandler:
    """Keeps loss, learning rate, seconds and validation metrics of every epoch in ``history.json``.

    With a :class:`DataHandler` before it, also the share of the steps' time that the network waited for data; with a
    :class:`LossTerms`, the parts of the loss; with a :class:`CheckpointHandler`, the epoch whose weights are kept so
    far. With several processes the loss is their mean.

    Args:
        folder: where the file goes.
        optimizer: its first parameter group tells the learning rate.
        validator: evaluator whose metrics are taken in the epochs in which it ran.
        class_names: names of the foreground classes, in the order of the per-class metric.
        per_class_metric: name of a validator metric with one value a foreground class.
        resume: keep the epochs that an earlier part of this training wrote.
        is_writer: False on all but the first process.
    """

    def __init__(
        self,
        folder: str,
        *,
        optimizer: torch.optim.Optimizer,
        validator: Any = None,
        class_names: Sequence[str] = (),
        per_class_metric: str = "val_mean_dice",
        resume: bool = False,
        is_writer: bool = True,
    ) -> None:
        self.path = Path(folder) / HISTORY_NAME
        self.optimizer = optimizer
        self.validator = validator
        self.class_names = tuple(class_names)
        self.per_class_metric = per_class_metric
        self.resume = resume
        self.is_writer = is_writer
        self.epochs: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._started = self._last_step = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after its validation handler."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Any) -> None:
        """Take over the history of the part before."""
        if self.resume and self.path.is_file():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
            self.epochs = [entry for entry in earlier if entry["epoch"] <= engine.state.epoch]
        engine.state.history = self.epochs

    def epoch_started(self, engine: Any) -> None:
        """Start the clock."""
        self._losses = []
        self._started = self._last_step = time.perf_counter()

    def iteration_completed(self, engine: Any) -> None:
        """Note the loss."""
        self._losses.append(loss_of(engine))
        self._last_step = time.perf_counter()

    def epoch_completed(self, engine: Any) -> None:
        """Add the epoch and write the file."""
        loss = math.fsum(self._losses) / max(len(self._losses), 1)
        means = mean_of_processes({"": loss, **getattr(engine.state, "loss_terms", {})})
        entry: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "time": round(1000 * time.time()),  # milliseconds since 1970, as MLflow counts
            "loss": means[""],
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": time.perf_counter() - self._started,
            "steps_per_second": len(self._losses) / max(self._last_step - self._started, 1e-9),  # without validation
        }
        if getattr(engine.state, "loss_terms", None):
            entry["loss_terms"] = {name: means[name] for name in engine.state.loss_terms}
        if hasattr(engine.state, "data_wait"):
            entry["data_wait"] = round(engine.state.data_wait, 4)
        if kept := getattr(engine.state, "kept_epoch", 0):
            entry["kept_epoch"] = kept
        metrics = validation_metrics(self.validator, engine.state.epoch)
        if metrics:
            entry["val_metrics"] = {name: value for name, value in metrics.items() if isinstance(value, float)}
            details = validation_dice(self.validator, self.class_names)
            if details:
                entry["val_dice"] = details
        self.epochs.append(entry)
        engine.state.history = self.epochs
        if self.is_writer:
            write_atomically(self.path, json.dumps(self.epochs, indent=1))


def kept_entry(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the entry of the epoch whose weights a run keeps; empty if the history does not name it.

    Example:
        >>> kept_entry([{"epoch": 1, "kept_epoch": 1}, {"epoch": 2, "kept_epoch": 1}])["epoch"]
        1
    """
    kept = history[-1].get("kept_epoch") if history else None
    return next((entry for entry in history if entry["epoch"] == kept), {})


def loss_of(engine: Any) -> float:
    """The loss of the iteration; decollating copies it into the output of every case."""
    output = engine.state.output
    loss = (output[0] if isinstance(output, list) else output)["loss"]
    return float(torch.as_tensor(loss).detach())


def validation_metrics(validator: Any, epoch: int) -> dict[str, float]:
    """The validator's metrics as numbers, if they were computed in this epoch."""
    if validator is None or validator.state.epoch != epoch:
        return {}
    return {name: float(value) for name, value in validator.state.metrics.items() if _is_number(value)}


def validation_dice(validator: Any, class_names: Sequence[str]) -> dict[str, float]:
    """Mean Dice of every foreground class over the cases of the last validation, by name.

    MONAI's metric handlers keep the table (cases x classes) in ``state.metric_details``.
    """
    details = getattr(validator.state, "metric_details", {}).get(validator.state.key_metric_name)
    if details is None or not class_names or details.ndim != 2 or details.shape[1] != len(class_names):
        return {}
    means = torch.nanmean(details.float(), dim=0).tolist()
    return {name: value for name, value in zip(class_names, means, strict=True) if not math.isnan(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
