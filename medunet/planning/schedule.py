"""The number of epochs that fits a time."""

import math
from dataclasses import dataclass

from .probe import StepCost

USABLE = 0.93  # share of the time that is planned; other programs, checkpoints and slower steps take the rest
START_SECONDS = 15.0  # imports, reading the first images, closing the run
VALIDATIONS = 5  # intended number of validations
MAX_VALIDATIONS = 8
VALIDATION_SHARE = 0.15  # share of the time that validation may take
NEARLY = 0.95  # at least this share of the epochs is kept for a number of validations nearer to `VALIDATIONS`
UNLIMITED_STEPS = {"cpu": 8_000, "cuda": 25_000}  # steps without a time limit; nnU-Net makes 250,000


@dataclass(frozen=True)
class Schedule:
    """The length of a training run."""

    cost: StepCost  # of a step, from which it was computed
    epochs: int
    steps_per_epoch: int
    val_interval: int  # epochs between validations
    seconds: float  # expected duration
    reason: str
    numbers: str  # figures it was computed from

    @property
    def steps(self) -> int:
        """Training steps of the run."""
        return self.epochs * self.steps_per_epoch


def fit_schedule(
    cost: StepCost, steps_per_epoch: int, *, validation_cases: int, seconds: float | None, device: str
) -> Schedule:
    """Return a schedule that fits a time, validations and startup included; without a time, the default step count.

    Examples:
        >>> cost = StepCost(True, step_seconds=0.5, image_seconds=1.0)
        >>> schedule = fit_schedule(cost, steps_per_epoch=20, validation_cases=10, seconds=600, device="cpu")
        >>> schedule.epochs, schedule.val_interval
        (51, 17)
    """
    step = cost.step_seconds + cost.data_seconds
    validation = validation_cases * cost.image_seconds
    numbers = f"{step:.3g} s per step, {validation:.3g} s per validation of {validation_cases} cases, measured"
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
        reason += "; the time does not suffice for one epoch, so the epoch is shorter"
    most = max(1, min(MAX_VALIDATIONS, int(VALIDATION_SHARE * time / max(validation, 1e-9))))
    # epochs by number of validations, so that the last validation is on the last epoch
    choices = {n: n * int((time - n * validation) / (steps_per_epoch * step * n)) for n in range(1, most + 1)}
    useful = {n: epochs for n, epochs in choices.items() if n >= min(VALIDATIONS - 2, most) and epochs} or {1: 1}
    long = [n for n, epochs in useful.items() if epochs >= NEARLY * max(useful.values())]
    rounds = min(long, key=lambda n: abs(n - VALIDATIONS))
    epochs = max(1, useful[rounds])
    expected = START_SECONDS + epochs * steps_per_epoch * step + rounds * validation
    reason += f"; {rounds} validations"
    return Schedule(cost, epochs, steps_per_epoch, epochs // rounds, expected, reason, numbers)


def spell_time(seconds: float) -> str:
    """Return a duration as text.

    Examples:
        >>> spell_time(42), spell_time(1500), spell_time(9000)
        ('42 s', '25 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{math.floor(seconds / 360) / 10:g} h"
