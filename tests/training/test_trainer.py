"""The additions of the training engine to MONAI's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.data import Dataset

from medunet.errors import ConfigError, DataError
from medunet.runtime import load_checkpoint
from medunet.training import BEST_NAME, Trainer

from .conftest import cross_entropy, items

Make = Callable[..., Trainer]


def test_a_non_finite_loss_names_the_cases_of_the_batch(tmp_path: Path, make_trainer: Make) -> None:
    data = items(4)
    data[2]["image"][0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite.*case_2"):  # noqa: RUF043
        make_trainer(tmp_path, dataset=Dataset(data)).run()


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
def test_a_compiled_run_ends_with_the_weights_of_a_plain_one(tmp_path: Path, make_trainer: Make) -> None:
    weights = []
    for compiled in (False, True):
        make_trainer(tmp_path / str(compiled), compile_network=compiled).run()
        weights.append(load_checkpoint(tmp_path / str(compiled) / BEST_NAME)["model"])
    plain, fused = weights
    assert plain.keys() == fused.keys()  # the names are the network's own
    for name in plain.keys() - {"0.bias", "1.running_mean"}:  # the gradient of a bias before batch norm is noise
        torch.testing.assert_close(fused[name], plain[name], rtol=1e-4, atol=1e-5)


def test_cuda_only_options_and_a_missing_compiler_raise_typed_errors(
    tmp_path: Path, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="amp"):
        make_trainer(tmp_path, amp=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"g\+\+"):
        make_trainer(tmp_path, compile_network=True)
