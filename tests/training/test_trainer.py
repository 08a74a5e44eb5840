"""The training engine: what it adds to MONAI's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset

from medunet.errors import ConfigError, DataError
from medunet.runtime import load_checkpoint
from medunet.training import (
    BEST_NAME,
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


def test_non_finite_loss_names_the_cases_of_the_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, data=items(4, bad=2))
    with pytest.raises(DataError, match="case_2") as info:
        trainer.run()
    assert "not finite" in str(info.value)


def test_gradient_is_clipped_to_the_norm(tmp_path: Path) -> None:
    def steep(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return 1e6 * torch.nn.functional.cross_entropy(pred, label[:, 0])

    trainer = make_trainer(tmp_path, epochs=1, clip_grad_norm=1e-3, loss_function=steep)
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


def test_options_bound_to_cuda_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="amp"):
        make_trainer(tmp_path, amp=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_ends_with_the_weights_of_a_plain_one(tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        trainer = make_trainer(tmp_path / str(compiled), compile_network=compiled)
        trainer.run()
        weights.append(load_checkpoint(tmp_path / str(compiled) / BEST_NAME)["model"])
    plain, fused = weights
    assert plain.keys() == fused.keys()  # the names are the network's own
    for name, tensor in plain.items():
        torch.testing.assert_close(fused[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"g\+\+"):
        make_trainer(tmp_path, compile_network=True)
