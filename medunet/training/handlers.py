"""Handlers that MONAI lacks: reproducible epochs, the history file, parts of the loss, validation, early stopping."""

import json
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import monai.handlers
import torch
from ignite.engine import Engine, Events

from medunet.errors import DataError
from medunet.files import write_atomically
from medunet.metrics import add_counts, count_objects, object_scores

from .processes import mean_of_processes

logger = logging.getLogger(__name__)

OBJECT_METRICS = ("val_mean_ap", "val_ap_50", "val_f1", "val_pq", "val_seg")  # of objects, see medunet.metrics
HISTORY_NAME = "history.json"  # in a run's output folder, one dictionary per epoch


class EpochSeeder:
    """Make the randomness of an epoch a function of seed, epoch and rank alone.

    A resumed training run draws the same patches as an uninterrupted one.

    Args:
        seed: any non-negative number.
        dataset: a data set whose ``transform`` is a ``monai.transforms.Compose``.
        sampler: an optional sampler with a method ``set_epoch``.
        rank: rank of this process, so that processes draw different deformations.
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
        # large odd factors keep (seed, epoch, rank) apart; NumPy takes seeds below 2**32
        seed = (self.seed + 1_000_003 * epoch + 7_919 * self.rank) % 2**32
        torch.manual_seed(seed)
        transform: Any = getattr(self.dataset, "transform", None)
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


@dataclass(eq=False)
class HistoryHandler:
    """Write loss, learning rate, seconds and validation metrics of every epoch to ``history.json``.

    After a :class:`DataHandler` an entry has the share of time that the network waited for data, after a
    :class:`LossTerms` the parts of the loss, after a :class:`CheckpointHandler` the epoch whose weights are selected so
    far (``kept_epoch``). With several processes the loss is their mean.

    Args:
        folder: folder of the file.
        optimizer: its first parameter group has the learning rate.
        validator: evaluator whose metrics are recorded in the epochs in which it ran.
        class_names: names of the foreground classes, in the order of the key metric.
        resume: keep the epochs that an earlier part of this training run wrote.
        is_writer: False on all but the first process.
    """

    folder: str
    _: KW_ONLY
    optimizer: torch.optim.Optimizer
    validator: Any = None
    class_names: Sequence[str] = ()
    resume: bool = False
    is_writer: bool = True

    def __post_init__(self) -> None:
        self.path = Path(self.folder) / HISTORY_NAME
        self.epochs: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []  # on their device until the epoch ends: no step waits for them
        self._started = self._last_step = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after its validation handler."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Any) -> None:
        """Read the history of the epochs before a resume."""
        if self.resume and self.path.is_file():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
            self.epochs = [entry for entry in earlier if entry["epoch"] <= engine.state.epoch]
        engine.state.history = self.epochs

    def _epoch_started(self, engine: Any) -> None:
        self._losses = []
        self._started = self._last_step = time.perf_counter()

    def _iteration_completed(self, engine: Any) -> None:
        self._losses.append(loss_of(engine))
        self._last_step = time.perf_counter()

    def epoch_completed(self, engine: Any) -> None:
        """Add the epoch and write the file."""
        state = engine.state
        terms = getattr(state, "loss_terms", {})
        means = mean_of_processes({"": finite_mean(self._losses), **terms})
        entry: dict[str, Any] = {
            "epoch": state.epoch,
            "iteration": state.iteration,
            "time": round(1000 * time.time()),  # milliseconds since 1970, as MLflow counts
            "loss": means[""],
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": time.perf_counter() - self._started,
            "steps_per_second": len(self._losses) / max(self._last_step - self._started, 1e-9),  # without validation
        }
        if terms:
            entry["loss_terms"] = {name: means[name] for name in terms}
        if hasattr(state, "data_wait"):
            entry["data_wait"] = round(state.data_wait, 4)
        if selected := getattr(state, "kept_epoch", 0):
            entry["kept_epoch"] = selected
        if metrics := validation_metrics(self.validator, state.epoch):
            entry["val_metrics"] = metrics
            if details := validation_dice(self.validator, self.class_names):
                entry["val_dice"] = details
        self.epochs.append(entry)
        state.history = self.epochs
        if self.is_writer:
            write_atomically(self.path, json.dumps(self.epochs, indent=1))


def read_history(run: Path) -> list[dict[str, Any]]:
    """Return the history of a run, one dictionary per epoch; empty before the first epoch.

    Raises:
        DataError: The file is damaged.
    """
    path = run / "eval" / HISTORY_NAME
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
    except ValueError as error:
        raise DataError("not the history of a training run", file=path) from error


def kept_entry(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the entry of the epoch with the selected weights; empty if the history does not name it."""
    epoch = history[-1].get("kept_epoch") if history else None
    return next((entry for entry in history if entry["epoch"] == epoch), {})


def loss_of(engine: Any) -> torch.Tensor:
    """Return the loss of the iteration, on its device; decollating copies it into the output of every case."""
    output = engine.state.output
    loss = (output[0] if isinstance(output, list) else output)["loss"]
    return torch.as_tensor(loss).detach()


def finite_mean(values: Collection[torch.Tensor]) -> float:
    """Return the mean of losses, fetched by one copy, without those that overflowed in float16; NaN if none is left."""
    finite = [value for value in torch.stack(tuple(values)).tolist() if math.isfinite(value)] if values else []
    return math.fsum(finite) / len(finite) if finite else math.nan


def validation_metrics(validator: Any, epoch: int) -> dict[str, float]:
    """Return the validator's metrics that are numbers, if it ran in this epoch."""
    if validator is None or validator.state.epoch != epoch:
        return {}
    return {
        name: float(value)
        for name, value in validator.state.metrics.items()
        if isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    }


def validation_dice(validator: Any, class_names: Sequence[str]) -> dict[str, float]:
    """Return the mean Dice of every foreground class over the cases of the last validation, by name."""
    # MONAI's metric handlers keep the table (cases x classes) here
    details = getattr(validator.state, "metric_details", {}).get(validator.state.key_metric_name)
    if details is None or not class_names or details.ndim != 2 or details.shape[1] != len(class_names):
        return {}
    means = torch.nanmean(details.float(), dim=0).tolist()
    return {name: value for name, value in zip(class_names, means, strict=True) if not math.isnan(value)}


class ObjectScores:
    """Score the objects of a validation, whatever their class, under the names `OBJECT_METRICS` of its metrics.

    The counts of all cases are pooled; the mean average precision of each case is in ``state.metric_details``. The
    cases have the object numbers of the prediction under ``objects``, and those of the label under ``numbers``.
    """

    def attach(self, engine: Engine) -> None:
        """Register with the validator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _epoch_started(self, engine: Any) -> None:
        self._counts: list[dict[str, float]] = []

    def _iteration_completed(self, engine: Any) -> None:
        for output, item in zip(engine.state.output, engine.state.batch, strict=True):
            self._counts.append(count_objects(output["objects"][0].cpu(), item["numbers"][0].cpu()))

    def _epoch_completed(self, engine: Any) -> None:
        nothing = torch.zeros((1, 1), dtype=torch.int32)
        pooled = mean_of_processes(add_counts([count_objects(nothing, nothing), *self._counts]))
        scores = object_scores(pooled)  # ratios, for which a mean is as good as a sum
        engine.state.metrics |= {name: scores[name.removeprefix("val_")] for name in OBJECT_METRICS}
        of_cases = [[object_scores(counts)["mean_ap"]] for counts in self._counts]
        engine.state.metric_details[OBJECT_METRICS[0]] = torch.tensor(of_cases)


class LossTerms:
    """Store the mean over an epoch of every part of the loss in ``engine.state.loss_terms``, by name.

    The parts are the modules that a loss consists of, such as ``dice`` and ``cross_entropy`` of MONAI's ``DiceCELoss``,
    before their factors. With deep supervision the finest level counts. A loss without parts has no terms.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = {}  # on the device until the epoch ends: no step waits for them
        self._seen: set[str] = set()
        self._hooks: list[Any] = []

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, before its history handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda _: self._seen.clear())
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._values.clear())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _start(self, engine: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        terms = terms_of(getattr(engine, "loss_function", None))
        self._hooks = [part.register_forward_hook(partial(self._record, name)) for name, part in terms.items()]

    def _epoch_completed(self, engine: Any) -> None:
        engine.state.loss_terms = {name: finite_mean(values) for name, values in self._values.items()}

    def _record(self, name: str, module: torch.nn.Module, args: Any, output: Any) -> None:
        if name not in self._seen and isinstance(output, torch.Tensor) and output.numel() == 1:
            self._seen.add(name)  # the first call of a step is the finest level
            self._values.setdefault(name, []).append(output.detach().reshape(()))


def terms_of(loss: Any) -> dict[str, torch.nn.Module]:
    """Return the parts of a loss by name; a module with a single part counts as a wrapper of that part."""
    while isinstance(loss, torch.nn.Module):
        parts = dict(loss.named_children())
        if len(parts) != 1:
            return parts
        (loss,) = parts.values()
    return {}


class ValidationHandler(monai.handlers.ValidationHandler):
    """MONAI's ``ValidationHandler`` that also validates the last epoch, whose learning rate is smallest.

    It has the arguments of ``monai.handlers.ValidationHandler``.
    """

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        super().attach(engine)
        if self.epoch_level:  # the last epoch, unless the interval validates it
            event = Events.EPOCH_COMPLETED(event_filter=lambda e, n: n == e.state.max_epochs and n % self.interval > 0)
            engine.add_event_handler(event, self)


class EarlyStop:
    """End training after some validations without a new best metric.

    MONAI's ``EarlyStopHandler`` counts from 0 after ``--resume``. This one reads the best metric, which the checkpoint
    restores, so a resumed run stops at the same epoch as an uninterrupted one.

    Args:
        patience: validations in a row without a new best metric; 0 never stops.
        validator: the evaluator of the trainer's validation handler.
        interval: epochs between two validations.
    """

    def __init__(self, patience: int, *, validator: Any, interval: int = 1) -> None:
        self.patience = patience
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after its validation handler."""
        if self.patience > 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Compare this epoch with the best one."""
        state = self.validator.state
        if state.epoch != engine.state.epoch:  # this epoch was not validated
            return
        best = state.best_metric_epoch
        if (engine.state.epoch - max(best, 0)) // self.interval >= self.patience:
            logger.info("stopped after epoch %d: no better validation since epoch %d", state.epoch, best)
            engine.terminate()
