"""The additions of the training engine to MONAI's."""

import math
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from simulated_cuda import SimulatedCuda

from medunet.errors import ConfigError, DataError
from medunet.runtime import load_checkpoint
from medunet.training import BEST_NAME, HistoryHandler, Trainer
from medunet.training.trainer import MAX_OVERFLOWS

from .conftest import cross_entropy, items

Make = Callable[..., Trainer]


def test_a_non_finite_loss_names_the_cases_of_the_batch(tmp_path: Path, make_trainer: Make) -> None:
    data = items(4)
    data[2]["image"][0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite.*case_2"):  # noqa: RUF043
        make_trainer(tmp_path, dataset=Dataset(data)).run()


def test_on_a_gpu_a_non_finite_loss_is_reported_one_step_later(tmp_path: Path, make_trainer: Make) -> None:
    data = items(4)
    data[2]["image"][0, 0, 0] = torch.nan
    with SimulatedCuda():
        trainer = make_trainer(tmp_path, dataset=Dataset(data), device="cuda")
        with pytest.raises(DataError, match="case_2") as info:
            trainer.run()
    [iteration] = map(int, re.findall(r"iteration (\d+)", str(info.value)))
    assert trainer.state.iteration == min(iteration + 1, trainer.state.epoch_length)
    assert not list(tmp_path.glob("*.pt"))


def test_cudnn_times_its_kernels_in_training_steps_only(tmp_path: Path, make_trainer: Make) -> None:
    timed: list[bool] = []

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        timed.append(torch.backends.cudnn.benchmark)
        return cross_entropy(*tensors)

    with SimulatedCuda():
        trainer = make_trainer(tmp_path, epochs=1, device="cuda", loss_function=loss)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: timed.append(torch.backends.cudnn.benchmark))
        trainer.run()
    assert timed == 4 * [True, False]


def overflowing(*, at: range, calls: list[int]) -> Callable[..., torch.Tensor]:
    """Return a loss that is infinite in some steps."""

    def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls) + 1)
        return cross_entropy(pred, label) * (torch.inf if calls[-1] in at else 1.0)

    return loss


def test_a_float16_overflow_skips_its_step(tmp_path: Path, make_trainer: Make) -> None:
    weights: list[torch.Tensor] = []
    options = {"autocast_dtype": "float16", "loss_function": overflowing(at=range(2, 4), calls=[])}
    trainer = make_trainer(tmp_path, epochs=2, **options)
    first = next(trainer.network.parameters())
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: weights.append(first.detach().clone()))
    trainer.run()
    is_equal = [torch.equal(a, b) for a, b in pairwise(weights)]
    assert is_equal == [True, True, False, False, False, False, False]
    assert trainer.grad_scaler.get_scale() == 2.0**14  # half of 2 ** 16, twice
    assert all(bool(weight.isfinite().all()) for weight in weights)


def test_an_epoch_without_a_finite_loss_has_no_mean(tmp_path: Path, make_trainer: Make) -> None:
    options = {"autocast_dtype": "float16", "loss_function": overflowing(at=range(1, 5), calls=[])}
    trainer = make_trainer(tmp_path, epochs=2, **options)
    HistoryHandler(str(tmp_path), optimizer=trainer.optimizer).attach(trainer)
    trainer.run()
    assert [math.isfinite(entry["loss"]) for entry in trainer.state.history] == [False, True]


@pytest.mark.parametrize("reason", ["every step", "batch norm", "bfloat16"])
def test_an_overflow_that_does_not_pass_ends_training(tmp_path: Path, make_trainer: Make, reason: str) -> None:
    overflow = overflowing(at=range(1 if reason == "every step" else 2, 100), calls=[])

    def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if reason == "batch norm":
            trainer.network[1].running_mean.data[0] = torch.inf
        return overflow(pred, label)

    dtype = "bfloat16" if reason == "bfloat16" else "float16"
    trainer = make_trainer(tmp_path, epochs=9, interval=99, autocast_dtype=dtype, loss_function=loss)
    with pytest.raises(DataError, match="learning_rate" if reason == "bfloat16" else "set autocast_dtype to float32"):
        trainer.run()
    assert trainer.state.iteration == (MAX_OVERFLOWS + 1 if reason == "every step" else 2)


def test_a_failed_compilation_is_a_warning(
    tmp_path: Path, make_trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(image: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.TorchDynamoException("no kernel for this")

    trainer = make_trainer(tmp_path, epochs=1)
    trainer._forward = fail
    trainer.run()
    assert "the network runs without it: no kernel for this" in caplog.text
    assert trainer.state.iteration == 4


def test_gradient_is_clipped_to_the_norm(tmp_path: Path, make_trainer: Make) -> None:
    trainer = make_trainer(tmp_path, epochs=1, clip_grad_norm=1e-3, loss_function=lambda *x: 1e6 * cross_entropy(*x))
    trainer.run()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in trainer.network.parameters()))
    assert norm <= 1e-3 * 1.001


def test_the_loss_gets_its_keys_and_float32_under_bfloat16(tmp_path: Path, make_trainer: Make) -> None:
    calls = []

    def loss(pred: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append((pred.dtype, bool((weight == 1).all())))
        return cross_entropy(pred, label)

    make_trainer(tmp_path, epochs=1, loss_function=loss, loss_keys=["weight"], autocast_dtype="bfloat16").run()
    assert set(calls) == {(torch.float32, True)}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_ends_with_the_loss_of_a_plain_one(tmp_path: Path, make_trainer: Make) -> None:
    losses, names = [], []
    for compiled in (False, True, "graphs"):  # which on a CPU only compiles
        trainer = make_trainer(tmp_path / str(compiled), compile_network=compiled)
        trainer.run()
        losses.append(float(trainer.state.output[0]["loss"]))
        names.append(load_checkpoint(tmp_path / str(compiled) / BEST_NAME)["model"].keys())
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-2)  # Muon magnifies the rounding of small gradients
    assert names[0] == names[1] == names[2]  # those of the network itself


def test_cuda_only_options_and_a_missing_compiler_raise_typed_errors(
    tmp_path: Path, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="amp"):
        make_trainer(tmp_path, amp=True)
    with pytest.raises(ConfigError, match="compile_network"):
        make_trainer(tmp_path, compile_network="graph")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"g\+\+"):
        make_trainer(tmp_path, compile_network=True)
