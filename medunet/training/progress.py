"""The progress of a training run: a live view in a terminal, log lines elsewhere."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, Events
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .handlers import finite_mean, loss_of

logger = logging.getLogger(__name__)

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-=+*#"  # for terminals without Unicode
SPARK_WIDTH = 40  # characters of a sparkline
REFRESH = 4.0  # redraws of the view per second
SHOWN_LOSSES = 20  # newest steps whose mean loss is shown, which is steady enough to read
LOG_SECONDS = 30.0  # between two log lines within an epoch, so that a slow run differs from a dead one


def sparkline(values: Sequence[float], *, width: int = SPARK_WIDTH, bars: str = BARS) -> str:
    """Return a row of bars from the lowest to the highest value; if there are too many values, bars are means.

    Examples:
        >>> sparkline([3, 2, 1, 2]), sparkline([1, 1, 3, 3], width=2), sparkline([1, float("nan"), 1])
        ('█▅▁▅', '▁█', '▁ ▁')
    """
    if len(values) > width:
        parts = torch.tensor(values, dtype=torch.float64).tensor_split(width)
        values = [float(part.nanmean()) for part in parts]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, span = min(finite), max(finite) - min(finite)
    scale = (len(bars) - 1) / span if span > 0 else 0.0
    return "".join(bars[math.floor((value - low) * scale + 0.5)] if math.isfinite(value) else " " for value in values)


@dataclass(eq=False, kw_only=True)
class ProgressHandler:
    """Show progress, loss, Dice by class and the remaining time: live in a terminal, else a log line per epoch.

    Attach it after a :class:`HistoryHandler`, whose losses and Dice it shows.

    Args:
        class_names: names of the foreground classes.
        validator: the evaluator whose progress is logged.
        console: where to draw; standard error by default.
        is_writer: False on all but the first process.
    """

    class_names: Sequence[str] = ()
    validator: Any = None
    console: Console = field(default_factory=partial(Console, stderr=True))
    is_writer: bool = True
    _live: Live | None = field(default=None, init=False)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after its history and validation handlers."""
        if not self.is_writer:
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        engine.add_event_handler(Events.TERMINATE, self._stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)
        if isinstance(self.validator, Engine):
            self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._case_validated)

    def start(self, engine: Any) -> None:
        """Open the view; a resumed run shows its earlier epochs."""
        self._started = self._last_line = time.perf_counter()
        state = engine.state
        self._first_iteration = state.iteration
        self._losses: deque[torch.Tensor] = deque(maxlen=SHOWN_LOSSES)  # on their device until they are shown
        if not self.console.is_terminal:
            logger.info("training: %d epochs of %d steps", state.max_epochs, state.epoch_length)
            return
        status = TextColumn("{task.fields[status]}")
        self._bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), status, console=self.console
        )
        total = state.max_epochs * state.epoch_length
        self._task = self._bar.add_task("", total=total, completed=state.iteration, status="")
        view = partial(self._view, state)
        self._live = Live(console=self.console, refresh_per_second=REFRESH, get_renderable=view)
        self._live.start()

    def _iteration_completed(self, engine: Any) -> None:
        self._losses.append(loss_of(engine))
        state, left = engine.state, self._time_left(engine)
        epoch = f"epoch {state.epoch}/{state.max_epochs}"
        if self._live is not None:
            rate = (state.iteration - self._first_iteration) / (time.perf_counter() - self._started)
            self._bar.update(self._task, completed=state.iteration, status=f"{epoch}  {rate:.2g} steps/s  left {left}")
            return
        step = (state.iteration - 1) % state.epoch_length + 1
        if step < state.epoch_length:
            place = f"{epoch}  step {step}/{state.epoch_length}"
            self._log(lambda: f"{place}  loss {finite_mean(self._losses):.3f}  left {left}")

    def _case_validated(self, engine: Any) -> None:
        if self._live is None:
            self._log(lambda: f"validated {engine.state.iteration}/{engine.state.epoch_length} cases")

    def _log(self, line: Callable[[], str]) -> None:
        now = time.perf_counter()
        if now - self._last_line >= LOG_SECONDS:
            self._last_line = now
            logger.info(line())

    def _epoch_completed(self, engine: Any) -> None:
        if self._live is None:
            self._last_line = time.perf_counter()
            state = engine.state
            entry = state.history[-1]
            scores = " ".join(f"{name} {value:.3f}" for name, value in entry.get("val_dice", {}).items())
            epoch, left = f"{state.epoch}/{state.max_epochs}", self._time_left(engine)
            logger.info("epoch %s  loss %.3f  %s  left %s", epoch, entry["loss"], scores and f"Dice {scores}", left)

    def _stop(self, engine: Any) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _failed(self, engine: Any, error: BaseException) -> None:
        self._stop(engine)
        raise error

    def _time_left(self, engine: Any) -> timedelta:
        state = engine.state
        done, total = state.iteration - self._first_iteration, state.max_epochs * state.epoch_length
        seconds = (time.perf_counter() - self._started) / max(done, 1) * (total - state.iteration)
        return timedelta(seconds=round(seconds))

    def _view(self, state: Any) -> RenderableType:
        bars = BARS if self.console.encoding.lower().startswith("utf") else PLAIN_BARS
        table = Table.grid(padding=(0, 2))
        losses = [entry["loss"] for entry in state.history]
        newest = finite_mean(self._losses)
        newest = losses[-1] if math.isnan(newest) and losses else newest
        table.add_row("loss", f"{newest:.3f}", Text(sparkline(losses, bars=bars)), "")
        for name in self.class_names:
            dice = [entry["val_dice"].get(name, math.nan) for entry in state.history if "val_dice" in entry]
            if finite := [value for value in dice if math.isfinite(value)]:
                line = Text(sparkline(dice, bars=bars), style="green")
                table.add_row(Text(f"Dice {name}"), f"{dice[-1]:.3f}", line, f"best {max(finite):.3f}")
        return Group(self._bar, table)
