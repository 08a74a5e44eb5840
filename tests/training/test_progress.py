"""What a training looks like while it runs."""

from __future__ import annotations

import io
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.losses import DiceCELoss
from rich.console import Console

from medunet.losses import DeepSupervisionLoss
from medunet.training import LossTerms, ProgressHandler
from medunet.training.progress import sparkline


def run(handler: ProgressHandler, *, epochs: int = 2, error: Exception | None = None) -> None:
    losses = iter([4.0, 2.0, 1.0, 0.5])
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(next(losses))})
    if error is not None:

        def fail(engine: Any) -> None:
            raise error

        engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), fail)
    handler.attach(engine)
    engine.run([0, 1], max_epochs=epochs)


def make_validator(values: list[float]) -> Any:
    table = torch.tensor([values])
    state = SimpleNamespace(epoch=2, metrics={"dice": 0.5}, metric_details={"dice": table}, key_metric_name="dice")
    return SimpleNamespace(state=state)


def test_lines_tell_epoch_dice_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with caplog.at_level(logging.INFO, logger="medunet"):
        run(ProgressHandler(console=console, class_names=["a", "b"], validator=make_validator([0.25, 0.75])))
    assert "epoch 2/2  loss" in caplog.messages[-1]
    assert "Dice a 0.250 b 0.750  left 0:00" in caplog.messages[-1]
    assert "Dice" not in caplog.messages[-2]
    assert console.file.getvalue() == ""


def test_a_log_gets_lines_within_an_epoch_and_while_cases_are_validated(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunet.training.progress.SIGN_SECONDS", 0.0)
    validator = Engine(lambda engine, batch: None)
    with caplog.at_level(logging.INFO, logger="medunet"):
        run(ProgressHandler(console=Console(file=io.StringIO(), force_terminal=False), validator=validator), epochs=1)
        validator.run([0, 1])
    assert [message for message in caplog.messages if "step 1/2  loss 4.000  left 0:00" in message]
    assert not [message for message in caplog.messages if "step 2/2" in message]
    assert "validated 1/2 cases" in caplog.messages


def test_a_quick_epoch_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="medunet"):
        run(ProgressHandler(console=Console(file=io.StringIO(), force_terminal=False)))
    assert len(caplog.messages) == 3  # the heading and two epochs


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_shows_loss_dice_and_progress(encoding: str) -> None:
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=screen, force_terminal=True, width=120)
    run(ProgressHandler(console=console, class_names=["a"], validator=make_validator([0.25])))
    text = raw.getvalue().decode(encoding)
    assert "4/4" in text
    assert "Dice a" in text
    assert "best 0.250" in text
    assert ("█" in text) == (encoding == "utf-8")


def test_an_error_gives_the_terminal_back_and_goes_on() -> None:
    screen = io.StringIO()
    with pytest.raises(ValueError, match="bad"):
        run(ProgressHandler(console=Console(file=screen, force_terminal=True, width=120)), error=ValueError("bad"))
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is shown again


def test_a_sparkline_has_the_width_it_may_have() -> None:
    assert len(sparkline(list(range(1000)), width=40)) == 40
    assert sparkline([]) == ""
    assert sparkline([math.nan, math.nan]) == "  "
    line = sparkline(list(range(100)), width=8)
    assert list(line) == sorted(line)


@pytest.mark.parametrize("deep", [False, True])
def test_the_terms_of_a_loss_add_up_to_it(deep: bool) -> None:
    plain = DiceCELoss(softmax=True, to_onehot_y=True)
    loss = DeepSupervisionLoss(plain) if deep else plain
    logits, label = torch.randn(1, 2, 8, 8), torch.randint(0, 2, (1, 1, 8, 8))
    levels = [logits, torch.randn(1, 2, 4, 4)]

    def step(engine: Engine, batch: int) -> None:
        loss(levels if deep else logits, label)

    engine = Engine(step)
    engine.loss_function = loss
    LossTerms().attach(engine)
    engine.run([0, 1], max_epochs=1)
    assert sum(engine.state.loss_terms.values()) == pytest.approx(float(plain(logits, label)))
    assert set(engine.state.loss_terms) == {"dice", "cross_entropy"}
