"""Checkpoints: the selected weights of a run, the state for `--resume`, and the weights that a run starts from."""

import logging
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from torch.utils._pytree import tree_map_only

from medunet.errors import ConfigError, DataError
from medunet.files import check_target, is_whole_zip, keep_as, remove_remains
from medunet.runtime import SAFE_SUFFIX, load_checkpoint, load_weights, save_checkpoint, save_weights, transfer_weights
from medunet.trust import forget_weights

from .processes import from_first

logger = logging.getLogger(__name__)

BEST_NAME = "model.pt"  # the selected weights, `{"model": state_dict}`; MONAI's tools look for this name
LAST_NAME = "last.pt"  # the state to resume from, written after every epoch, or on a GPU when it is time
PREVIOUS_NAME = "previous.pt"  # the file before the last one, used if the last one is damaged

FIXED = ("initial_lr", "max_lr", "weight_decay")  # values of optimizers and schedules that stay the same during a run
LENGTHS = ("total_steps", "total_iters", "T_max")  # values of schedules that are their length
GPU_SECONDS = 60.0  # between two checkpoints on a GPU, where an epoch may take a second and writing it as long
SPARE_COPIES = 3  # checkpoints that must fit on the disk: a new one, the last one and the previous one
STATES = 3  # of a checkpoint: weights and, at most, two moments of the optimizer


class WeightsLoader:
    """Load a bundle's weights when an evaluation or inference starts.

    It raises typed errors if they do not fit; MONAI's ``CheckpointLoader`` skips such weights by default.

    Args:
        path: the checkpoint, or one per member of an ensemble.
        network: the bare network.
    """

    def __init__(self, path: str | Sequence[str], network: torch.nn.Module) -> None:
        self.path = path
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: load_weights(self.network, self.path))


class WeightsTransfer:
    """Fine-tuning: before the first step, copy the tensors of another run that fit the network.

    With other classes or channels the first or last layers do not fit; a warning names the tensors that were not
    copied, and ``engine.state.transfer`` is the report. A resumed run keeps its weights.

    Args:
        source: a run's folder (its ``models/model.pt``) or a checkpoint; None or ``""`` keeps the random weights.
        network: the bare network.
    """

    def __init__(self, source: str | os.PathLike[str] | None, network: torch.nn.Module) -> None:
        self.source = source
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after its checkpoint handler."""
        if self.source:
            engine.add_event_handler(Events.STARTED, self._transfer, weights_of(self.source))

    def _transfer(self, engine: Any, path: Path) -> None:
        if engine.state.epoch > 0:  # the checkpoint handler has resumed
            return
        report = engine.state.transfer = transfer_weights(self.network, path)
        logger.log(logging.WARNING if report.left_out else logging.INFO, "%s: %s", path, report)


def weights_of(source: str | os.PathLike[str]) -> Path:
    """Return the checkpoint of a run's folder, without pickle if there is no other; a file is returned as it is."""
    path = Path(source)
    if not path.is_dir():
        return path
    best = path / "models" / BEST_NAME
    safe = best.with_suffix(SAFE_SUFFIX)
    return safe if safe.is_file() and not best.is_file() else best


@dataclass(eq=False)
class CheckpointHandler:
    """Write the selected weights and the state to resume from.

    Attach it to the trainer (as one of its ``train_handlers``). After every epoch ``last.pt`` holds network, optimizer,
    schedule, loss scaler and epoch; ``previous.pt`` is the file before it. ``model.pt`` and ``model.safetensors`` hold
    the weights with the best key metric of the validator, with ``keep="last"`` those of the last validation, and those
    of the last epoch if nothing is validated. Files are written atomically. Training does not start unless there is
    room for them on the disk.

    On a GPU a thread writes the files: after a validation, the last epoch, and any other one after `GPU_SECONDS`.

    Args:
        folder: where to write.
        network: the bare network (not wrapped for distributed training).
        optimizer: the trainer's optimizer.
        lr_scheduler: the scheduler of the trainer's ``LrScheduleHandler``.
        validator: the evaluator with the key metric; None if nothing is validated.
        resume: continue from ``last.pt`` if there is one; the first of several processes reads it for all.
        is_writer: False on all but the first process of a distributed training run.
        keep: 'best' or 'last' of the validated epochs. The last is better if a schedule ends in small steps: mean Dice
            on the hippocampus was 0.888 for the last and 0.884 for the best epoch.

    Raises:
        ConfigError: `keep` is neither 'best' nor 'last'.
    """

    folder: str
    network: torch.nn.Module
    _: KW_ONLY
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any = None
    validator: Any = None
    resume: bool = False
    is_writer: bool = True
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise ConfigError("keep_epoch must be best or last", received=self.keep)
        self.path = Path(self.folder)
        self.best_metric: float | None = None
        self.best_epoch = 0
        self.kept_epoch = 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, as the first of its handlers: the others then see the resumed epoch."""
        engine.add_event_handler(Events.STARTED, self.start)
        # the history is written before the weights and names the selected epoch
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.choose)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, lambda _: self.choose(engine))

    def start(self, engine: Any) -> None:
        """Load the newest intact state when resuming.

        Raises:
            DataError: The folder cannot be written or has no room, or ``last.pt`` and ``previous.pt`` are damaged.
            ConfigError: The run started with another learning rate or number of steps.
        """
        self._saved = time.monotonic()
        # registered only now, to run after all other handlers of an epoch (validation, schedule, history)
        if not engine.has_event_handler(self.save, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        if self.is_writer:
            remove_remains(self.path)
            self._check_room()
            forget_weights(self.path.parent)
        state = from_first(self._load) if self.resume else None
        if state is not None:
            self._restore(engine, state)
        elif self.resume:
            logger.info("nothing to resume at %s: starting from the first epoch", LAST_NAME)

    def _restore(self, engine: Any, state: Mapping[str, Any]) -> None:
        is_longer = self._is_longer(engine, state)
        self._check_unchanged(state, fixed=FIXED if is_longer else FIXED + LENGTHS)
        self.network.load_state_dict(state["model"])
        if is_longer:  # the new schedule continues at the step that the shorter one has reached
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch expects a step of the optimizer before each
                for _ in range(state["lr_scheduler"]["last_epoch"]):
                    self.lr_scheduler.step()
        elif self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        groups = [{**group, "params": ()} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        if is_longer:
            for group, own in zip(self.optimizer.param_groups, groups, strict=True):
                group.update({**own, "params": group["params"]})
        if (scaler := _scaler(engine)) is not None and scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        self.best_metric = state["best_metric"]
        self.best_epoch, self.kept_epoch = state["best_epoch"], state["kept_epoch"]
        engine.state.best_epoch, engine.state.kept_epoch = self.best_epoch, self.kept_epoch
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.validator is not None and self.best_metric is not None:
            self.validator.state.best_metric = self.best_metric
            self.validator.state.best_metric_epoch = self.best_epoch
        logger.info("resumed after epoch %d", state["epoch"])
        if engine.state.epoch >= engine.state.max_epochs or state["stopped"]:
            engine.terminate()

    def _is_longer(self, engine: Any, state: Mapping[str, Any]) -> bool:
        """Return whether the schedule is for more epochs than the saved one, with as many steps per epoch."""
        if self.lr_scheduler is None or state["iteration"] != state["epoch"] * (engine.state.epoch_length or 0):
            return False
        here, before = self.lr_scheduler.state_dict(), state["lr_scheduler"]
        return any(here[name] > before.get(name, here[name]) for name in LENGTHS if name in here)

    def _check_unchanged(self, state: Mapping[str, Any], *, fixed: Sequence[str]) -> None:
        """Reject values that the saved state would silently replace."""
        pairs = list(zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=False))
        if self.lr_scheduler is not None:
            pairs.append((self.lr_scheduler.state_dict(), state["lr_scheduler"]))
        for here, before in pairs:
            changed = [name for name in fixed if name in here and before.get(name, here[name]) != here[name]]
            if changed:
                received, expected = (", ".join(f"{name} {of[name]:g}" for name in changed) for of in (here, before))
                raise ConfigError(
                    "a resumed run must have the epochs, steps_per_epoch and learning_rate that it started with",
                    file=self.path / LAST_NAME,
                    received=received,
                    expected=expected,
                    remedy="restore them, or train into another --output with --init-from this run",
                )

    def _load(self) -> dict[str, Any] | None:
        """Return the newest intact state; None if there is none."""
        paths = [path for name in (LAST_NAME, PREVIOUS_NAME) if (path := self.path / name).is_file()]
        for path in paths:
            if is_whole_zip(path):
                return load_checkpoint(path)
            logger.warning("%s is damaged", path)
        if paths:
            remedy = "train into another --output, for instance with --init-from this one"
            raise DataError("every checkpoint to resume from is damaged", file=paths[0], remedy=remedy)
        return None

    def _check_room(self) -> None:
        size = sum(tensor.nbytes for tensor in self.network.state_dict().values() if isinstance(tensor, torch.Tensor))
        check_target(self.path, needed=SPARE_COPIES * STATES * size)

    def choose(self, engine: Any) -> None:
        """Decide whether to keep the weights of this epoch; called before and after its validation."""
        epoch = engine.state.epoch
        metric = self._new_metric(epoch)
        improved = metric is not None and (self.best_metric is None or metric > self.best_metric)
        if improved:
            self.best_metric, self.best_epoch = metric, epoch
        if improved or self.best_metric is None or (self.keep == "last" and metric is not None):
            self.kept_epoch = epoch
        engine.state.kept_epoch, engine.state.best_epoch = self.kept_epoch, self.best_epoch

    def save(self, engine: Any) -> None:
        """Write the files of the completed epoch; on a GPU a thread does, if it is time."""
        epoch = engine.state.epoch
        self.choose(engine)
        is_finished = bool(engine.should_terminate) or epoch >= engine.state.max_epochs
        is_validated = self.validator is not None and self.validator.state.epoch == epoch
        device = next(self.network.parameters()).device
        is_due = device.type != "cuda" or is_validated or time.monotonic() - self._saved >= GPU_SECONDS
        if not (self.is_writer and (is_due or is_finished)):
            return
        best = self.network.state_dict() if self.kept_epoch == epoch else {}
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": {} if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "scaler": {} if (scaler := _scaler(engine)) is None else scaler.state_dict(),
            "epoch": epoch,
            "iteration": engine.state.iteration,
            "stopped": bool(engine.should_terminate),  # by EarlyStop
            "finished": is_finished,
            "best_metric": self.best_metric,
            "best_epoch": self.best_epoch,
            "kept_epoch": self.kept_epoch,
        }
        if device.type != "cuda":
            self._write(best, state)
            return
        if self._writing is not None:
            self._writing.result()
        # the copies are in pinned memory; the next step changes the originals
        copy = partial(torch.Tensor.to, device="cpu", non_blocking=True, copy=True)
        best, state = tree_map_only(torch.Tensor, copy, (best, state))
        torch.cuda.synchronize(device)
        self._writing, self._saved = self._thread.submit(self._write, best, state), time.monotonic()
        if is_finished:
            self._writing.result()

    def _write(self, best: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        if best:
            save_weights(best, self.path / BEST_NAME)
        keep_as(self.path / LAST_NAME, self.path / PREVIOUS_NAME)
        save_checkpoint(state, self.path / LAST_NAME)

    def _new_metric(self, epoch: int) -> float | None:
        """Return the validator's key metric if it was computed in this epoch and is not NaN, else None."""
        if self.validator is None or self.validator.state.key_metric_name is None:
            return None
        state = self.validator.state
        if state.epoch != epoch or state.key_metric_name not in state.metrics:
            return None
        value = float(state.metrics[state.key_metric_name])
        return None if math.isnan(value) else value  # NaN: no validation case has any class


def _scaler(engine: Any) -> Any:
    """Return the gradient scaler of medunet's or MONAI's trainer, or None."""
    return getattr(engine, "grad_scaler", None) or getattr(engine, "scaler", None)
