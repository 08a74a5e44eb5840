"""Writing and resuming checkpoints: the best weights for users, the whole state for `--resume`."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events

from medunet.errors import ConfigError, DataError
from medunet.files import check_target, is_whole_zip, keep_as, remove_remains
from medunet.runtime import load_checkpoint, load_weights, save_checkpoint, save_weights
from medunet.trust import forget_weights

from .averaging import WeightAverage
from .processes import from_first, is_distributed

logger = logging.getLogger(__name__)

BEST_NAME = "model.pt"
"""The weights that are kept, `{"model": state_dict}`: the file that MONAI's tools look for."""
LAST_NAME = "last.pt"
"""Everything that continuing needs; written after every epoch."""
PREVIOUS_NAME = "previous.pt"
"""The last but one: taken where a failing disk has broken the last."""

FIXED = ("initial_lr", "max_lr", "weight_decay")
"""Values of optimizers and schedules that do not change while they run."""

LENGTHS = ("total_steps", "total_iters", "T_max")
"""Values of schedules that say how long they are."""

SPARE_COPIES = 3
"""Checkpoints that must find room at the start: a new one beside the last and the one before."""


class WeightsLoader:
    """Loads a bundle's weights when an evaluation or inference starts; strict, and with typed errors.

    MONAI's ``CheckpointLoader`` passes over weights that do not fit unless told otherwise.

    Args:
        path: the checkpoint, or one a member of an ensemble.
        network: the bare network.
    """

    def __init__(self, path: str | Sequence[str], network: torch.nn.Module) -> None:
        self.path = path
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Load; raises as :func:`medunet.runtime.load_weights`."""
        load_weights(self.network, self.path)


class CheckpointHandler:
    """Keeps the best and the last state of a training.

    Attach to the trainer (as one of its ``train_handlers``). After every epoch ``last.pt`` holds network, optimizer,
    schedule, loss scaler and epoch; when the validator's key metric improves, or with ``keep="last"`` after every
    validation, ``model.pt`` holds the network's weights, averaged where averaging is on. Where nothing is validated,
    ``model.pt`` follows the last epoch. Both are written atomically; ``model.safetensors`` holds the same weights as
    ``model.pt``, ``previous.pt`` what was ``last.pt`` before. Before the first step it is made sure that there is room
    for them.

    Args:
        folder: where to write.
        network: the bare network (not wrapped for distributed training).
        optimizer: as in the trainer.
        lr_scheduler: as in the trainer's ``LrScheduleHandler``.
        average: what ``model.pt`` gets instead of the newest weights; attached to the trainer here.
        validator: the evaluator whose ``state.best_metric`` decides; ``None`` when nothing is validated.
        resume: continue from ``last.pt`` where there is one; of several processes the first reads it, for all.
        save_interval: epochs between two ``last.pt``; the final epoch is always written.
        is_writer: False on all but the first process of a distributed training.
        keep: 'best' or 'last' of the epochs that were validated. The last, where a schedule ends in small steps: the
            hippocampus after 15 minutes had a mean Dice of 0.888 by the last epoch, 0.884 by the one with the best
            validation, which does without the mirrored and enlarged views that predictions are made of.

    Raises:
        ConfigError: another `keep`.
    """

    def __init__(
        self,
        folder: str,
        network: torch.nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any = None,
        average: WeightAverage | None = None,
        validator: Any = None,
        resume: bool = False,
        save_interval: int = 1,
        is_writer: bool = True,
        keep: Literal["best", "last"] = "best",
    ) -> None:
        if keep not in ("best", "last"):
            raise ConfigError("unknown choice of an epoch", received=keep, expected="best or last")
        self.keep = keep
        self.folder = Path(folder)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.average = average if average is not None and average.is_on else None
        self.validator = validator
        self.resume = resume
        self.save_interval = save_interval
        self.is_writer = is_writer
        self.best_metric: float | None = None
        self.best_epoch = 0
        self.kept_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, as the first of its handlers: the others then see the epoch that was resumed."""
        engine.add_event_handler(Events.STARTED, self.start)
        # the history, which is written before the weights, says which epoch they are of
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.choose)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, lambda _: self.choose(engine))
        if self.average is not None:
            self.average.attach(engine)

    def start(self, engine: Any) -> None:
        """Load the newest whole state when resuming.

        Raises:
            DataError: the folder cannot be written or has no room; ``last.pt`` and ``previous.pt`` are both broken.
            ConfigError: the training was begun with another learning rate or number of steps.
        """
        # registered only now, so that it runs after all other handlers of an epoch (validation, schedule, history)
        if not engine.has_event_handler(self.save, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        if self.is_writer:
            remove_remains(self.folder)
            self._check_room()
            forget_weights(self.folder.parent)
        if not self.resume:
            return
        state = from_first(lambda: self._load(engine.state.device))
        if state is None:
            logger.info("nothing to resume at %s: starting from the first epoch", LAST_NAME)
            return
        is_longer = self._is_longer(engine, state)
        self._check_unchanged(state, fixed=FIXED if is_longer else FIXED + LENGTHS)
        self.network.load_state_dict(state["model"])
        if is_longer:
            _advance(self.lr_scheduler, state["lr_scheduler"]["last_epoch"])
            options = [{**group, "params": ()} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, own in zip(self.optimizer.param_groups, options, strict=True):
                group.update({**own, "params": group["params"]})
        else:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.lr_scheduler is not None:
                self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if engine.grad_scaler is not None and engine.grad_scaler.is_enabled():
            engine.grad_scaler.load_state_dict(state["scaler"])
        if self.average is not None and "average" in state:
            self.average.load_state_dict(state["average"])
        self.best_metric, self.best_epoch = state["best_metric"], state["best_epoch"]
        self.kept_epoch = engine.state.kept_epoch = state.get("kept_epoch", self.best_epoch)
        engine.state.best_epoch = self.best_epoch
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["iteration"]
        if self.validator is not None and self.best_metric is not None:
            self.validator.state.best_metric = self.best_metric
            self.validator.state.best_metric_epoch = self.best_epoch
        logger.info("resumed after epoch %d", state["epoch"])
        if engine.state.epoch >= engine.state.max_epochs or state.get("stopped", False):
            engine.terminate()

    def _is_longer(self, engine: Any, state: Mapping[str, Any]) -> bool:
        """Whether the schedule is for more epochs than the saved one, with as many steps per epoch."""
        if self.lr_scheduler is None or state["iteration"] != state["epoch"] * (engine.state.epoch_length or 0):
            return False
        here, before = self.lr_scheduler.state_dict(), state["lr_scheduler"]
        return any(here[name] > before.get(name, here[name]) for name in LENGTHS if name in here)

    def _check_unchanged(self, state: Mapping[str, Any], *, fixed: Sequence[str]) -> None:
        """Reject what the saved state would silently replace."""
        pairs = list(zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=False))
        if self.lr_scheduler is not None:
            pairs.append((self.lr_scheduler.state_dict(), state["lr_scheduler"]))
        for here, before in pairs:
            changed = [name for name in fixed if name in here and before.get(name, here[name]) != here[name]]
            if changed:
                raise ConfigError(
                    "a training goes on with the values that it was begun with",
                    file=self.folder / LAST_NAME,
                    received=", ".join(f"{name} {here[name]:g}" for name in changed),
                    expected=", ".join(f"{name} {before[name]:g}" for name in changed),
                    remedy="set epochs, steps_per_epoch and learning_rate back, or train into another --output with "
                    "--init-from this run",
                )

    def _load(self, device: torch.device) -> dict[str, Any] | None:
        path = self._newest()
        where = torch.device("cpu") if is_distributed() else device  # other processes have other devices
        return None if path is None else load_checkpoint(path, map_location=where)

    def _newest(self) -> Path | None:
        """The state to go on with; None where there is none."""
        present = [path for name in (LAST_NAME, PREVIOUS_NAME) if (path := self.folder / name).is_file()]
        for path in present:
            if is_whole_zip(path):
                return path
            logger.warning("%s is damaged", path)
        if present:
            raise DataError(
                "every checkpoint to go on with is damaged",
                file=present[0],
                remedy="check the disk; train into another --output, for instance with --init-from this one",
            )
        return None

    def _check_room(self) -> None:
        size = sum(tensor.nbytes for tensor in self.network.state_dict().values() if isinstance(tensor, torch.Tensor))
        states = 3 + (self.average is not None)  # weights and, at most, two moments of the optimizer
        check_target(self.folder, needed=SPARE_COPIES * states * size)

    def choose(self, engine: Any) -> None:
        """Decide whether the weights of this epoch are kept; before and after its validation."""
        epoch = engine.state.epoch
        metric = self._new_metric(epoch)
        improved = metric is not None and (self.best_metric is None or metric > self.best_metric)
        if improved:
            self.best_metric, self.best_epoch = metric, epoch
        if improved or self.best_metric is None or (self.keep == "last" and metric is not None):
            self.kept_epoch = epoch
        engine.state.kept_epoch, engine.state.best_epoch = self.kept_epoch, self.best_epoch

    def save(self, engine: Any) -> None:
        """Write what the finished epoch gave."""
        epoch = engine.state.epoch
        self.choose(engine)
        if not self.is_writer:
            return
        if self.kept_epoch == epoch:
            best = self.network.state_dict() if self.average is None else self.average.weights()
            save_weights(best, self.folder / BEST_NAME)
        if epoch % self.save_interval and epoch != engine.state.max_epochs and not engine.should_terminate:
            return
        scaler = {} if engine.grad_scaler is None else engine.grad_scaler.state_dict()
        keep_as(self.folder / LAST_NAME, self.folder / PREVIOUS_NAME)
        schedule = {} if self.lr_scheduler is None else self.lr_scheduler.state_dict()
        save_checkpoint(
            {
                "model": self.network.state_dict(),
                **({} if self.average is None else {"average": self.average.state_dict()}),
                "optimizer": self.optimizer.state_dict(),
                "lr_scheduler": schedule,
                "scaler": scaler,
                "epoch": epoch,
                "iteration": engine.state.iteration,
                "stopped": bool(engine.should_terminate),  # by EarlyStop
                "finished": bool(engine.should_terminate) or epoch >= engine.state.max_epochs,
                "best_metric": self.best_metric,
                "best_epoch": self.best_epoch,
                "kept_epoch": self.kept_epoch,
            },
            self.folder / LAST_NAME,
        )

    def _new_metric(self, epoch: int) -> float | None:
        """The validator's key metric if it was computed in this epoch.

        The validation handler runs the evaluator with `state.epoch` set to the trainer's epoch.
        """
        if self.validator is None or self.validator.state.key_metric_name is None:
            return None
        state = self.validator.state
        if state.epoch != epoch or state.key_metric_name not in state.metrics:
            return None
        value = float(state.metrics[state.key_metric_name])
        return None if math.isnan(value) else value  # NaN: no validation case holds any class


def _advance(lr_scheduler: Any, steps: int) -> None:
    """Bring a new schedule to the step that a shorter one has reached."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch expects a step of the optimizer before each
        for _ in range(steps):
            lr_scheduler.step()
