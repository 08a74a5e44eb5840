"""History and progress of a training."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from rich.console import Console

from medunet.training import HistoryHandler, ProgressHandler

PLAIN = Console(file=io.StringIO(), force_terminal=False)


def run(handler: HistoryHandler | ProgressHandler, *, epochs: int = 2) -> Engine:
    losses = iter([4.0, 2.0, 1.0, 0.5, 0.25, 0.125])
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(next(losses))})
    handler.attach(engine)
    engine.run([0, 1], max_epochs=epochs)
    return engine


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def test_history_holds_mean_loss_and_learning_rate_of_every_epoch(tmp_path: Path) -> None:
    run(HistoryHandler(str(tmp_path), optimizer=make_optimizer()))
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["loss"] for entry in history] == [3.0, 0.75]
    assert [(entry["epoch"], entry["iteration"], entry["lr"]) for entry in history] == [(1, 2, 0.5), (2, 4, 0.5)]


def test_history_is_written_by_the_first_process_only(tmp_path: Path) -> None:
    run(HistoryHandler(str(tmp_path), optimizer=make_optimizer(), is_writer=False))
    assert not (tmp_path / "history.json").exists()


def test_progress_is_lines_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="medunet"):
        run(ProgressHandler(console=Console(file=io.StringIO(), force_terminal=False)))
    assert any("epoch 2/2" in line and "left 0:00" in line for line in caplog.messages)


def test_the_printed_loss_is_the_one_of_the_history(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    losses = iter([4.0, 2.0, 1.0, 0.5])
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(next(losses))})
    for handler in (HistoryHandler(str(tmp_path), optimizer=make_optimizer()), ProgressHandler(console=PLAIN)):
        handler.attach(engine)
    with caplog.at_level(logging.INFO, logger="medunet"):
        engine.run([0, 1], max_epochs=2)
    assert [line.split()[3] for line in caplog.messages if line.startswith("epoch")] == ["3.000", "0.750"]


def test_progress_is_a_bar_in_a_terminal() -> None:
    screen = io.StringIO()
    run(ProgressHandler(console=Console(file=screen, force_terminal=True, width=120)))
    assert "4/4" in screen.getvalue()
