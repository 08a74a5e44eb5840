"""Which epoch's weights a training leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from medunet.errors import ConfigError
from medunet.runtime import load_checkpoint
from medunet.training import BEST_NAME, LAST_NAME, CheckpointHandler, HistoryHandler, Trainer, kept_entry

METRICS = {1: 0.6, 2: None, 3: 0.8, 4: 0.7, 5: None}
"""By epoch; None: not validated."""


@pytest.mark.parametrize(("keep", "kept"), [("best", 3), ("last", 4)])
def test_the_best_or_the_last_validated_epoch_is_kept(tmp_path: Path, keep: Literal["best", "last"], kept: int) -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    validator = SimpleNamespace(state=SimpleNamespace(epoch=0, key_metric_name="dice", metrics={}))
    handler = CheckpointHandler(
        str(tmp_path), network, optimizer=torch.optim.SGD(network.parameters(), 0.1), validator=validator, keep=keep
    )
    for epoch, metric in METRICS.items():
        torch.nn.init.constant_(network.weight, epoch)
        if metric is not None:
            validator.state.epoch, validator.state.metrics = epoch, {"dice": metric}
        state = SimpleNamespace(epoch=epoch, max_epochs=5, iteration=epoch)
        handler.save(SimpleNamespace(state=state, should_terminate=False, grad_scaler=None))
    assert load_checkpoint(tmp_path / BEST_NAME)["model"]["weight"].item() == kept
    assert handler.kept_epoch == kept
    assert (handler.best_metric, handler.best_epoch) == (0.8, 3)  # what early stopping goes by


def test_another_choice_is_refused(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(ConfigError, match="best or last"):
        CheckpointHandler(str(tmp_path), network, optimizer=optimizer, keep="first")  # type: ignore[arg-type]


def test_the_history_names_the_epoch_whose_weights_are_kept(
    tmp_path: Path, make_validated: Callable[..., Trainer]
) -> None:
    trainer = make_validated(tmp_path, epochs=5, interval=2, learning_rate=0.3, decay=0.0)
    HistoryHandler(str(tmp_path), optimizer=trainer.optimizer).attach(trainer)
    trainer.run()
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["kept_epoch"] for entry in history][:2] == [1, 2]  # before the first validation, the newest epoch
    last = load_checkpoint(tmp_path / LAST_NAME)
    assert kept_entry(history)["epoch"] == last["kept_epoch"] == last["best_epoch"]
