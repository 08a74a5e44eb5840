"""History, progress, parts of the loss, and augmentation of batches."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.transforms import RandShiftIntensityd
from rich.console import Console

from medunet.bundle import find_bundle
from medunet.losses import DeepSupervisionLoss
from medunet.training import HistoryHandler, IntensityHandler, LossTerms, ProgressHandler, Trainer
from medunet.transforms import RandDeformd, RandNoised


def run(*handlers: Any, epochs: int = 2, error: Exception | None = None) -> None:
    losses = iter([4.0, 2.0, 1.0, 0.5])
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(next(losses))})
    if error is not None:

        def fail(engine: Any) -> None:
            raise error

        engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), fail)
    for handler in handlers:
        handler.attach(engine)
    engine.run([0, 1], max_epochs=epochs)


def history(folder: Path, **options: Any) -> HistoryHandler:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return HistoryHandler(str(folder), optimizer=optimizer, **options)


def progress(screen: Any = None, **options: Any) -> ProgressHandler:
    console = Console(file=screen or io.StringIO(), force_terminal=screen is not None, width=120)
    return ProgressHandler(console=console, **options)


def make_validator(values: list[float]) -> Any:
    table = torch.tensor([values])
    state = SimpleNamespace(epoch=2, metrics={"dice": 0.5}, metric_details={"dice": table}, key_metric_name="dice")
    return SimpleNamespace(state=state)


def test_history_has_mean_loss_and_learning_rate_of_every_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="medunet"):
        run(history(tmp_path), progress())
    entries = json.loads((tmp_path / "history.json").read_text())
    assert [entry["loss"] for entry in entries] == [3.0, 0.75]
    assert [(entry["epoch"], entry["iteration"], entry["lr"]) for entry in entries] == [(1, 2, 0.5), (2, 4, 0.5)]
    assert [line.split()[3] for line in caplog.messages if line.startswith("epoch")] == ["3.000", "0.750"]
    run(history(tmp_path / "other", is_writer=False))
    assert not (tmp_path / "other").exists()


def test_a_resumed_run_has_the_history_of_its_first_part(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    for epochs, resume in ((2, False), (4, True), (4, True)):
        trainer = make_trainer(tmp_path, epochs=epochs, resume=resume)
        HistoryHandler(str(tmp_path), optimizer=trainer.optimizer, resume=resume).attach(trainer)
        trainer.run()
    assert [entry["epoch"] for entry in json.loads((tmp_path / "history.json").read_text())] == [1, 2, 3, 4]


def test_a_log_has_a_line_per_epoch_with_dice_and_remaining_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="medunet"):
        run(history(tmp_path, class_names=["a", "b"], validator=make_validator([0.25, 0.75])), progress())
    assert len(caplog.messages) == 3  # the heading and two epochs
    assert "epoch 2/2  loss" in caplog.messages[-1]
    assert "Dice a 0.250 b 0.750  left 0:00" in caplog.messages[-1]
    assert "Dice" not in caplog.messages[-2]


def test_a_log_has_lines_within_an_epoch_and_while_cases_are_validated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunet.training.progress.LOG_SECONDS", 0.0)
    validator = Engine(lambda engine, batch: None)
    with caplog.at_level(logging.INFO, logger="medunet"):
        run(history(tmp_path), progress(validator=validator), epochs=1)
        validator.run([0, 1])
    assert [message for message in caplog.messages if "step 1/2  loss 4.000  left 0:00" in message]
    assert not [message for message in caplog.messages if "step 2/2" in message]
    assert "validated 1/2 cases" in caplog.messages


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_shows_loss_dice_and_progress(encoding: str, tmp_path: Path) -> None:
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    recorded = history(tmp_path, class_names=["a"], validator=make_validator([0.25]))
    run(recorded, progress(screen, class_names=["a"]))
    text = raw.getvalue().decode(encoding)
    assert all(part in text for part in ("4/4", "Dice a", "best 0.250"))
    assert ("█" in text) == (encoding == "utf-8")


def test_an_error_restores_the_cursor_and_is_raised(tmp_path: Path) -> None:
    screen = io.StringIO()
    with pytest.raises(ValueError, match="bad"):
        run(history(tmp_path), progress(screen), error=ValueError("bad"))
    assert "\x1b[?25h" in screen.getvalue()


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


STEPS = 3  # of an epoch


def seen(handler: IntensityHandler, *, epochs: int = 1, done: int = 0) -> list[torch.Tensor]:
    """Return the images that a network sees in a resumed training run."""
    images: list[torch.Tensor] = []
    engine = Engine(lambda _, batch: images.append(batch["image"]))
    engine.state.device = torch.device("cpu")

    @engine.on(Events.STARTED)
    def resume(_: Engine) -> None:
        engine.state.epoch, engine.state.iteration = done, done * STEPS

    handler.attach(engine)
    engine.run(({"image": torch.zeros(3, 1, 4, 4)} for _ in range(99)), max_epochs=epochs, epoch_length=STEPS)
    return images


def make(seed: int = 0, rank: int = 0) -> IntensityHandler:
    steps = [RandShiftIntensityd("image", offsets=1.0, prob=0.8), RandNoised("image", std=(0.0, 1.0), prob=0.8)]
    return IntensityHandler(steps, seed=seed, rank=rank)


def test_a_resumed_run_sees_the_same_batches() -> None:
    whole = seen(make(), epochs=2)
    rest = seen(make(), epochs=2, done=1)
    assert all(torch.equal(one, other) for one, other in zip(whole[STEPS:], rest, strict=True))
    assert not any(torch.equal(whole[0], other) for other in whole[1:])


@pytest.mark.parametrize("other", [make(seed=1), make(rank=1)])
def test_other_seeds_and_processes_see_other_batches(other: IntensityHandler) -> None:
    assert not torch.equal(seen(make())[0], seen(other)[0])


@pytest.mark.parametrize("name", ["unet_2d", "unet_3d"])
def test_shipped_configs_change_intensities_once(name: str) -> None:
    for batched in (True, False):
        parser = ConfigParser()
        parser.read_config(str(find_bundle(name) / "configs" / "train.json"))
        parser.update({"batch_intensity": batched, "device": torch.device("cpu")})
        patch_steps = parser.get_parsed_content("augment_steps")
        (entry,) = [h for h in parser["train"]["handlers"] if h["_target_"].endswith("IntensityHandler")]
        index = parser["train"]["handlers"].index(entry)
        handler = parser.get_parsed_content(f"train::handlers::{index}")
        assert isinstance(patch_steps[0], RandDeformd)
        assert (len(patch_steps) - 1, len(handler.change.steps)) == ((0, 3) if batched else (3, 0))
