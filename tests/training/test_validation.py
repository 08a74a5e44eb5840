"""When a training is validated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ignite.engine import Events

from medunet.training import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("epochs", "interval", "validated"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (2, 5, [2]), (3, 1, [1, 2, 3])]
)
def test_the_last_epoch_is_validated_once_whatever_the_interval(
    tmp_path: Path, make_validated: Callable[..., Trainer], epochs: int, interval: int, validated: list[int]
) -> None:
    trainer = make_validated(tmp_path, epochs=epochs, interval=interval)
    handlers = [entry[0] for entry in trainer._event_handlers[Events.STARTED]]
    validator = next(h.__self__.validator for h in handlers if getattr(h.__self__, "validator", None) is not None)
    found: list[int] = []
    validator.add_event_handler(Events.COMPLETED, lambda engine: found.append(engine.state.epoch))
    trainer.run()
    assert found == validated
