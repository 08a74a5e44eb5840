"""The training engine: what it adds to MONAI's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset

from medunet.errors import ConfigError, DataError
from medunet.runtime import load_checkpoint
from medunet.training import (
    BEST_NAME,
    LAST_NAME,
    CheckpointHandler,
    EpochSeeder,
    HistoryHandler,
    RepeatSampler,
    Trainer,
)


def items(count: int = 6, bad: int | None = None) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    data = []
    for index in range(count):
        image = torch.randn(1, 8, 8, generator=generator)
        if index == bad:
            image[0, 0, 0] = torch.nan
        data.append(
            {"image": image, "label": (image > 0).long(), "weight": torch.ones(1, 8, 8), "name": f"case_{index}"}
        )
    return data


def make_trainer(
    folder: Path, *, epochs: int = 2, resume: bool = False, data: list[Any] | None = None, **options: Any
) -> Trainer:
    torch.manual_seed(1)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    dataset = Dataset(items() if data is None else data)
    sampler = RepeatSampler(len(dataset), num_samples=8, seed=3)
    handlers = [
        CheckpointHandler(str(folder), network, optimizer=optimizer, resume=resume),
        EpochSeeder(3, dataset, sampler=sampler),
        HistoryHandler(str(folder), optimizer=optimizer, resume=resume),
    ]
    settings = {
        "loss_function": lambda pred, label, *_: torch.nn.functional.cross_entropy(pred, label[:, 0]),
        "autocast_dtype": "float32",
        **options,
    }
    return Trainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(dataset, batch_size=2, sampler=sampler),
        network=network,
        optimizer=optimizer,
        train_handlers=handlers,
        decollate=False,
        **settings,
    )


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_non_finite_loss_names_the_cases_of_the_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, data=items(4, bad=2))
    with pytest.raises(DataError, match="case_2") as info:
        trainer.run()
    assert "not finite" in str(info.value)


def test_a_resumed_training_ends_with_the_weights_of_one_that_ran_through(tmp_path: Path) -> None:
    through = make_trainer(tmp_path / "through", epochs=4)
    through.run()
    make_trainer(tmp_path / "parts", epochs=2).run()
    resumed = make_trainer(tmp_path / "parts", epochs=4, resume=True)
    resumed.run()
    assert resumed.state.epoch == 4
    torch.testing.assert_close(weights(resumed), weights(through), rtol=0, atol=0)


def test_a_resumed_training_keeps_the_history_of_its_first_part(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=2).run()
    make_trainer(tmp_path, epochs=4, resume=True).run()
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    finished = make_trainer(tmp_path, epochs=4, resume=True)
    finished.run()
    assert [entry["epoch"] for entry in finished.state.history] == [1, 2, 3, 4]


def test_resuming_a_finished_training_trains_no_further(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, epochs=2)
    first.run()
    again = make_trainer(tmp_path, epochs=2, resume=True)
    again.run()
    torch.testing.assert_close(weights(again), weights(first), rtol=0, atol=0)


def test_weights_and_state_are_written_under_the_key_model(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.run()
    assert list(load_checkpoint(tmp_path / BEST_NAME)) == ["model"]
    last = load_checkpoint(tmp_path / LAST_NAME)
    assert last["epoch"] == 2
    torch.testing.assert_close(last["model"]["weight"], trainer.network.weight.detach())


def test_gradient_is_clipped_to_the_norm(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        epochs=1,
        clip_grad_norm=1e-3,
        loss_function=lambda pred, label, *_: 1e6 * torch.nn.functional.cross_entropy(pred, label[:, 0]),
    )
    trainer.run()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in trainer.network.parameters()))
    assert norm <= 1e-3 * 1.001


def test_loss_keys_reach_the_loss(tmp_path: Path) -> None:
    seen = []

    def loss(pred: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append(weight)
        return (torch.nn.functional.cross_entropy(pred, label[:, 0], reduction="none") * weight[:, 0]).mean()

    make_trainer(tmp_path, epochs=1, loss_function=loss, loss_keys=["weight"]).run()
    assert seen and all(torch.equal(weight, torch.ones(2, 1, 8, 8)) for weight in seen)


def test_loss_is_computed_in_float32_under_bfloat16(tmp_path: Path) -> None:
    dtypes = []

    def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        dtypes.append(pred.dtype)
        return torch.nn.functional.cross_entropy(pred, label[:, 0])

    trainer = make_trainer(tmp_path, epochs=1, loss_function=loss, autocast_dtype="bfloat16")
    trainer.run()
    assert set(dtypes) == {torch.float32}


def test_options_bound_to_cuda_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="amp"):
        make_trainer(tmp_path, amp=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_training_ends_with_the_weights_of_a_plain_one(tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        trainer = make_trainer(tmp_path / str(compiled), compile_network=compiled)
        trainer.run()
        weights.append(load_checkpoint(tmp_path / str(compiled) / BEST_NAME)["model"])
    plain, fused = weights
    assert plain.keys() == fused.keys()  # the names are the network's own
    for name, tensor in plain.items():
        torch.testing.assert_close(fused[name], tensor, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"g\+\+"):
        make_trainer(tmp_path, compile_network=True)


def test_a_broken_checkpoint_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / BEST_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=BEST_NAME):
        load_checkpoint(tmp_path / BEST_NAME)


def test_sampler_parts_are_disjoint_and_cover_the_epoch() -> None:
    parts = [list(RepeatSampler(10, num_samples=5, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(10))


def test_sampler_changes_with_the_epoch_and_repeats_with_the_seed() -> None:
    sampler, twin = (RepeatSampler(20, num_samples=20, seed=5) for _ in range(2))
    first = list(sampler)
    assert first == list(twin)
    sampler.set_epoch(1)
    assert first != list(sampler)


@pytest.mark.parametrize(
    ("rate", "steps", "named"), [(0.1, 8, "initial_lr"), (0.01, 12, "total_steps 12"), (0.01, 6, "total_steps 6")]
)
def test_a_training_is_not_resumed_with_a_schedule_of_other_length_or_height(
    tmp_path: Path, rate: float, steps: int, named: str
) -> None:
    def handler(rate: float, steps: int, *, resume: bool) -> tuple[CheckpointHandler, Engine]:
        network = torch.nn.Conv2d(1, 2, 3)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
        engine = Engine(lambda *_: None)
        engine.state.device, engine.state.iteration, engine.grad_scaler = torch.device("cpu"), 4, None
        engine.state.epoch, engine.state.max_epochs = 2, 4
        kept = CheckpointHandler(str(tmp_path), network, optimizer=optimizer, lr_scheduler=schedule, resume=resume)
        return kept, engine

    first, engine = handler(0.01, 8, resume=False)
    first.save(engine)
    same, engine = handler(0.01, 8, resume=True)
    same.start(engine)
    other, engine = handler(rate, steps, resume=True)
    with pytest.raises(ConfigError, match=named):
        other.start(engine)
