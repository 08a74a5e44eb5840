"""Muon beside torch's optimizers, whose sums it has to share."""

import math
from typing import Any

import pytest
import torch

from medunet.errors import ConfigError
from medunet.training import Muon
from medunet.training.muon import RMS, orthogonal


@pytest.mark.parametrize("shape", [(8, 27), (64, 1728), (96, 8), (3, 3)])
def test_an_update_has_the_directions_of_a_matrix_and_equal_sizes_in_all_of_them(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonal(matrix) @ right.T / (RMS * math.sqrt(max(shape)))
    sizes = found.diagonal()
    assert sizes.min() > 0.6
    assert sizes.max() < 1.25
    torch.testing.assert_close(found, torch.diag(sizes), rtol=0, atol=1e-3)


@pytest.mark.parametrize("matrix", [torch.zeros(4, 9), torch.ones(4, 9), torch.full((4, 9), 1e-20)])
def test_matrices_without_full_rank_have_finite_updates(matrix: torch.Tensor) -> None:
    assert orthogonal(matrix).isfinite().all()


def paths(make: Any, start: torch.Tensor, steps: int) -> torch.Tensor:
    """Return a parameter after some steps with gradients that depend on it."""
    weight = torch.nn.Parameter(start.clone())
    optimizer = make([weight])
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.grad = 0.1 * weight.detach() + torch.randn(start.shape, generator=random)
        optimizer.step()
    return weight.detach()


def test_norms_and_biases_take_the_steps_of_adamw() -> None:
    start = torch.linspace(-1, 1, 12)
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    found = paths(lambda params: Muon(params, **options), start, 20)
    torch.testing.assert_close(found, paths(lambda params: torch.optim.AdamW(params, **options), start, 20))


def test_convolutions_take_the_steps_of_torchs_muon_on_flat_matrices() -> None:
    start = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    own = paths(lambda params: Muon(params, lr=0.01, betas=(0.95, 0.95), weight_decay=0.1), start, 5)
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.95, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    random = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(start.flatten(1).clone())
    optimizer = torch.optim.Muon([weight], **options)
    for _ in range(5):
        noise = torch.randn(start.shape, generator=random).flatten(1)
        weight.grad = 0.1 * weight.detach() + noise
        optimizer.step()
    update, difference = own - start, own - weight.detach().view_as(own)
    assert difference.norm() < 0.03 * update.norm()  # torch's sums are in bfloat16


def test_a_bottleneck_of_nearly_parallel_gradients_is_learned_sooner_than_with_adamw() -> None:
    """A least-squares fit whose inputs are strongly correlated: AdamW follows the common direction first."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 16, generator=random) @ torch.diag(0.6 ** torch.arange(16.0))
    truth = torch.randn(8, 16, generator=random)
    errors = {}
    for kind in (Muon, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.zeros(8, 16))
        optimizer = kind([weight], lr=0.02, weight_decay=0.0)
        for _ in range(100):
            optimizer.zero_grad()
            ((inputs @ (weight - truth).T) ** 2).mean().backward()
            optimizer.step()
        errors[kind] = float((weight - truth).detach().norm())
    assert errors[Muon] < errors[torch.optim.AdamW]


def test_a_step_with_a_closure_returns_its_loss() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight])

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = weight.square().sum()
        value.backward()
        return value

    assert float(optimizer.step(loss).detach()) == 4
    assert float(loss().detach()) < 4


@pytest.mark.parametrize("shape", [(6,), (6, 4, 3, 3)])
def test_a_step_that_overflows_changes_no_weight_and_the_scale_of_the_loss_does_not_matter(
    shape: tuple[int, ...],
) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = paths(Muon, start, 3)
    weight = torch.nn.Parameter(start.clone())
    optimizer, scaler = Muon([weight]), torch.amp.GradScaler("cpu", init_scale=8.0)
    random = torch.Generator().manual_seed(1)
    for overflow in (False, True, False, False):
        scale = float(scaler.scale(torch.ones(())))
        before = weight.detach().clone()
        noise = 0 if overflow else torch.randn(shape, generator=random)
        weight.grad = torch.full(shape, torch.inf) if overflow else scale * (0.1 * before + noise)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, weight) == overflow
    if len(shape) > 1:  # the steps of the bias correction count all gradients
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}]
)
def test_values_out_of_range_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        Muon([torch.nn.Parameter(torch.ones(2, 2))], **options)
