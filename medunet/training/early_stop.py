"""Stopping when validation does not improve any more."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class EarlyStop:
    """Ends a training after some validations without a new best metric.

    MONAI's ``EarlyStopHandler`` counts anew after ``--resume``; this one asks the validator, whose best metric the
    checkpoint restores, so a resumed training stops where an uninterrupted one does.

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
        if state.epoch != engine.state.epoch:  # nothing was validated in this epoch
            return
        waited = (engine.state.epoch - max(state.best_metric_epoch, 0)) // self.interval
        if waited >= self.patience:
            logger.info(
                "stopped after epoch %d: no better validation since epoch %d", state.epoch, state.best_metric_epoch
            )
            engine.terminate()
