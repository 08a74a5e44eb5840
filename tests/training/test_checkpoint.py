"""The weights that a training run starts from, validates and selects; when it stops, and how it resumes."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from ignite.engine import Engine, Events
from simulated_cuda import SimulatedCuda

from medunet.errors import ConfigError, DataError
from medunet.runtime import load_checkpoint, save_checkpoint, transfer_weights
from medunet.training import (
    BEST_NAME,
    LAST_NAME,
    CheckpointHandler,
    HistoryHandler,
    Trainer,
    checkpoint,
    kept_entry,
)
from medunet.training.checkpoint import PREVIOUS_NAME

METRICS = {1: 0.6, 2: None, 3: 0.8, 4: 0.7, 5: None}  # by epoch; None: not validated
Make = Callable[..., Trainer]


def snapshot(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def validator_of(trainer: Trainer) -> Engine:
    owners = (getattr(entry[0], "__self__", None) for entry in trainer._event_handlers[Events.STARTED])
    return next(owner.validator for owner in owners if isinstance(owner, CheckpointHandler))


@pytest.mark.parametrize(("keep", "kept"), [("best", 3), ("last", 4)])
def test_the_best_or_the_last_validated_epoch_is_selected(
    tmp_path: Path, keep: Literal["best", "last"], kept: int
) -> None:
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


def test_invalid_options_raise_typed_errors(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(ConfigError, match="best or last"):
        CheckpointHandler(str(tmp_path), network, optimizer=optimizer, keep="first")  # type: ignore[arg-type]


def test_the_history_names_the_epoch_of_the_selected_weights(tmp_path: Path, make_trainer: Make) -> None:
    trainer = make_trainer(tmp_path, epochs=5, interval=2, learning_rate=0.3)
    HistoryHandler(str(tmp_path), optimizer=trainer.optimizer).attach(trainer)
    trainer.run()
    history, last = trainer.state.history, load_checkpoint(tmp_path / LAST_NAME)
    assert [entry["kept_epoch"] for entry in history][:2] == [1, 2]  # before the first validation, the newest epoch
    assert kept_entry(history)["epoch"] == last["kept_epoch"] == last["best_epoch"]


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path: Path, make_trainer: Make) -> None:
    make_trainer(tmp_path / "through", epochs=4).run()
    make_trainer(tmp_path / "parts", epochs=2).run()
    make_trainer(tmp_path / "parts", epochs=4, resume=True).run()
    for name in (BEST_NAME, LAST_NAME):
        through, parts = (load_checkpoint(tmp_path / run / name) for run in ("through", "parts"))
        assert same(parts["model"], through["model"])


def test_on_a_gpu_checkpoints_follow_validations_and_time(
    tmp_path: Path, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **options: Any) -> list[int]:
        """Train and return the epochs of the checkpoints."""
        written: list[dict[str, Any]] = []

        def save(state: dict[str, Any], path: Path) -> None:
            written.append(state)
            save_checkpoint(state, path)

        monkeypatch.setattr(checkpoint, "save_checkpoint", save)
        make_trainer(tmp_path / name, epochs=5, interval=3, **options).run()
        epochs = [state["epoch"] for state in written]
        if options:  # copies, which later steps do not change
            steps = [int(state["optimizer"]["state"][1]["step"]) for state in written]
            assert steps == [4 * epoch for epoch in epochs]
        return epochs

    assert run("cpu") == [1, 2, 3, 4, 5]
    with SimulatedCuda():
        assert run("cuda", device="cuda") == [3, 5]
        monkeypatch.setattr(checkpoint, "GPU_SECONDS", 0.0)
        assert run("often", device="cuda") == [1, 2, 3, 4, 5]
    for file in (BEST_NAME, LAST_NAME):  # the simulation computes on the CPU
        expected = load_checkpoint(tmp_path / "cpu" / file)["model"]
        assert all(same(load_checkpoint(tmp_path / name / file)["model"], expected) for name in ("cuda", "often"))
    assert load_checkpoint(tmp_path / "often" / PREVIOUS_NAME)["epoch"] == 4

    def fail(*_: Any) -> None:
        raise DataError("no space left")

    monkeypatch.setattr(checkpoint, "save_checkpoint", fail)
    with SimulatedCuda(), pytest.raises(DataError, match="no space left"):
        make_trainer(tmp_path / "full", epochs=3, device="cuda").run()


@pytest.mark.parametrize(
    ("rate", "steps", "named"), [(0.1, 8, "initial_lr"), (0.01, 12, "total_steps 12"), (0.01, 6, "total_steps 6")]
)
def test_a_run_is_not_resumed_with_another_schedule(tmp_path: Path, rate: float, steps: int, named: str) -> None:
    def handler(rate: float, steps: int, *, resume: bool) -> tuple[CheckpointHandler, Engine]:
        network = torch.nn.Conv2d(1, 2, 3)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
        engine = Engine(lambda *_: None)
        engine.state.device, engine.state.iteration, engine.grad_scaler = torch.device("cpu"), 4, None
        engine.state.epoch, engine.state.max_epochs = 2, 4
        options = {"optimizer": optimizer, "lr_scheduler": schedule, "resume": resume}
        return CheckpointHandler(str(tmp_path), network, **options), engine

    first, engine = handler(0.01, 8, resume=False)
    first.save(engine)
    same, engine = handler(0.01, 8, resume=True)
    same.start(engine)
    other, engine = handler(rate, steps, resume=True)
    with pytest.raises(ConfigError, match=named):
        other.start(engine)


@pytest.mark.parametrize(("epochs", "interval", "expected"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (2, 5, [2])])
def test_the_last_epoch_is_validated_once_with_any_interval(
    tmp_path: Path, make_trainer: Make, epochs: int, interval: int, expected: list[int]
) -> None:
    trainer = make_trainer(tmp_path, epochs=epochs, interval=interval)
    validated: list[int] = []
    validator_of(trainer).add_event_handler(Events.COMPLETED, lambda engine: validated.append(engine.state.epoch))
    trainer.run()
    assert validated == expected


def test_training_stops_after_the_patience_and_stays_stopped(tmp_path: Path, make_trainer: Make) -> None:
    options = {"epochs": 9, "patience": 3, "learning_rate": 0.0}  # the first validation stays the best
    through = make_trainer(tmp_path / "a", **options)
    through.run()
    assert through.state.epoch == load_checkpoint(tmp_path / "a" / LAST_NAME)["best_epoch"] + 3 < 9
    assert load_checkpoint(tmp_path / "a" / LAST_NAME)["finished"]
    make_trainer(tmp_path / "b", **options | {"epochs": 2}).run()
    for folder in ("a", "b"):
        resumed = make_trainer(tmp_path / folder, **options, resume=True)
        resumed.run()
        assert resumed.state.epoch == through.state.epoch


def test_init_from_is_used_by_a_new_run_but_not_by_a_resumed_one(
    tmp_path: Path, make_trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_trainer(tmp_path / "first", epochs=1)
    first.run()
    model = tmp_path / "first" / "model.pt"
    with caplog.at_level(logging.INFO, logger="medunet"):
        second = make_trainer(tmp_path / "second", epochs=1, learning_rate=0.0, init_from=model)
        second.run()
    assert "9 of 9 tensors copied" in caplog.text
    assert not second.state.transfer.left_out
    weights = torch.load(model, weights_only=True)["model"]
    for name, parameter in second.network.named_parameters():
        assert torch.equal(parameter, weights[name])
    resumed = make_trainer(tmp_path / "second", epochs=2, init_from=model, resume=True)
    resumed.run()
    assert not hasattr(resumed.state, "transfer")


def test_tensors_that_do_not_fit_are_named_and_not_copied(
    tmp_path: Path, make_trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    start = snapshot(make_trainer(tmp_path).network)
    state = {name: tensor + 1 for name, tensor in start.items() if name != "0.bias"}
    state |= {"2.weight": torch.zeros(3, 4, 1, 1), "2.bias": torch.zeros(3)}
    other = tmp_path / "three_classes" / "models" / BEST_NAME
    save_checkpoint({"model": state}, other)
    trainer = make_trainer(tmp_path / "run", epochs=1, learning_rate=0.0, init_from=other.parents[1])
    with caplog.at_level(logging.WARNING, logger="medunet"):
        trainer.run()
    for text in ("2.weight: shape (2, 4, 1, 1) here, (3, 4, 1, 1) there", "0.bias: only here"):
        assert text in caplog.text
    assert torch.equal(trainer.network[0].weight, start["0.weight"] + 1)
    assert torch.equal(trainer.network[2].weight, start["2.weight"])
    with pytest.raises(DataError, match="fit"):
        transfer_weights(torch.nn.Linear(2, 2), other)
