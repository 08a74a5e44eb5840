"""How many epochs a time budget holds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from medunet.errors import ConfigError

from .probe import StepCost

USABLE = 0.93
"""Part of the time that is planned with; other programs, checkpoints and slower steps take the rest."""

START_SECONDS = 15.0
"""Imports, reading the first images, closing the run."""

VALIDATIONS = 5
"""Validations in a training, about, if they are cheap."""

MAX_VALIDATIONS = 8

NEARLY = 0.95
"""Epochs that may be given up for a number of validations nearer to `VALIDATIONS`, as a factor."""

VALIDATION_SHARE = 0.15
"""Part of the time that validation may take."""

UNLIMITED_STEPS = {"cpu": 8_000, "cuda": 25_000}
"""Steps where no time is given; nnU-Net makes 250,000."""

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def parse_time(text: str) -> float:
    """Seconds of a duration.

    Raises:
        ConfigError: no such duration.

    Example:
        >>> parse_time("30min"), parse_time("1.5h")
        (1800.0, 5400.0)
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", text.lower())
    if found is None or found[2] not in _UNITS or not float(found[1]) > 0:
        raise ConfigError("impossible duration", received=text, expected="for instance 30min, 2h or 90s")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class Schedule:
    """How long to train.

    Args:
        epochs: of `steps_per_epoch` steps.
        steps_per_epoch: as the bundle has it.
        val_interval: epochs between validations.
        seconds: expected.
        reason: why.
        numbers: from which figures.
    """

    epochs: int
    steps_per_epoch: int
    val_interval: int
    seconds: float
    reason: str
    numbers: str


def fit_schedule(
    cost: StepCost, *, steps_per_epoch: int, validation_cases: int, seconds: float | None, device: str
) -> Schedule:
    """Epochs that fit a time, validations and start included; without a time a fixed number of steps.

    Args:
        cost: measured.
        steps_per_epoch: kept, but for a time that does not hold one epoch.
        validation_cases: of one fold.
        seconds: the time; None for no limit.
        device: 'cpu' or 'cuda'.

    Example:
        >>> cost = StepCost(True, step_seconds=0.5, image_seconds=1.0)
        >>> schedule = fit_schedule(cost, steps_per_epoch=20, validation_cases=10, seconds=600, device="cpu")
        >>> schedule.epochs, schedule.val_interval
        (51, 17)
    """
    step = cost.step_seconds + cost.data_seconds
    validation = validation_cases * cost.image_seconds
    numbers = f"{step:.3g} s a step, {validation:.3g} s a validation of {validation_cases} cases, measured"
    if seconds is None:
        time = UNLIMITED_STEPS[device] * step + VALIDATIONS * validation
        reason = f"no time was given: about {UNLIMITED_STEPS[device]:,} steps, the default on {device}"
    else:
        time = max(seconds * USABLE - START_SECONDS, step)
        reason = f"fits {spell_time(seconds)}, {100 * (1 - USABLE):.0f} % of it in reserve"
        if validation > time / 2:
            reason = f"steps for half of {spell_time(seconds)}; one validation takes longer than the other half"
            time = time / 2 + validation
    if time - validation < steps_per_epoch * step:
        steps_per_epoch = max(1, int((time - validation) / step))
        reason += "; not even one epoch fits, so that the epoch is shorter"
    most = max(1, min(MAX_VALIDATIONS, int(VALIDATION_SHARE * time / max(validation, 1e-9))))
    # the number of validations whose last one falls on the last epoch that the time holds
    choices = {n: n * int((time - n * validation) / (steps_per_epoch * step * n)) for n in range(1, most + 1)}
    useful = {n: epochs for n, epochs in choices.items() if n >= min(VALIDATIONS - 2, most) and epochs} or {1: 1}
    long = [n for n, epochs in useful.items() if epochs >= NEARLY * max(useful.values())]
    rounds = min(long, key=lambda n: abs(n - VALIDATIONS))
    epochs = max(1, useful[rounds])
    expected = START_SECONDS + epochs * steps_per_epoch * step + rounds * validation
    return Schedule(epochs, steps_per_epoch, epochs // rounds, expected, f"{reason}; {rounds} validations", numbers)


def spell_time(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> spell_time(42), spell_time(1500), spell_time(9000)
        ('42 s', '25 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{math.floor(seconds / 360) / 10:g} h"
