"""Batch norm over two processes is batch norm over their batches together."""

from pathlib import Path

import pytest
import torch
from forks import run_two_processes
from torch import distributed

from medunet.networks import SynchronizedBatchNorm, UNet, synchronize_norms

pytestmark = pytest.mark.filterwarnings("ignore")


def process(rank: int, folder: Path) -> None:
    """Save what the norm of one of two processes computes."""
    distributed.init_process_group("gloo")
    results = {}
    for name, (parts, weighting) in CASES.items():
        norm = SynchronizedBatchNorm(3, momentum=0.3)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, 0.3]))
        x = parts[rank].requires_grad_()
        for _ in range(2):
            y = norm(x)
        (y.float() * weighting[rank]).sum().backward()
        gradients = {"dx": x.grad, "dw": norm.weight.grad, "db": norm.bias.grad}
        results[name] = {"y": y.detach(), **gradients, **norm.state_dict()}
    torch.save(results, folder / f"result_{rank}.pt")
    distributed.destroy_process_group()


def make(*sizes: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], ...]:
    generator = torch.Generator().manual_seed(0)
    parts = [(5 + 2 * torch.randn(size, 3, *shape, generator=generator)).to(dtype) for size in sizes]
    return parts, [torch.randn(part.shape, generator=generator) for part in parts]


CASES = {
    "planes": make(2, 2, shape=(5, 4)),
    "volumes of unequal number": make(1, 3, shape=(3, 4, 2)),
    "bfloat16": make(2, 2, shape=(8, 8), dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("norm")
    run_two_processes(lambda rank: process(rank, folder))
    return [torch.load(folder / f"result_{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_match_one_with_both_batches(
    name: str, of_two_processes: list[dict[str, dict[str, torch.Tensor]]]
) -> None:
    parts, weighting = CASES[name]
    norm = torch.nn.BatchNorm2d(3, momentum=0.3) if parts[0].dim() == 4 else torch.nn.BatchNorm3d(3, momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, 0.3]))
    whole = torch.cat(parts).detach().clone().requires_grad_()
    for _ in range(2):
        y = norm(whole)
    (y.float() * torch.cat(weighting)).sum().backward()
    first, second = (result[name] for result in of_two_processes)
    tolerance = {"rtol": 2e-2, "atol": 3e-2} if whole.dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([first["y"], second["y"]]), y.detach(), **tolerance)
    torch.testing.assert_close(torch.cat([first["dx"], second["dx"]]), whole.grad, **tolerance)
    # each process has its part of the weights' gradients
    torch.testing.assert_close(first["dw"] + second["dw"], norm.weight.grad, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(first["db"] + second["db"], norm.bias.grad, rtol=1e-4, atol=1e-4)
    for key, expected in norm.state_dict().items():
        torch.testing.assert_close(first[key], expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(first[key], second[key])


def test_synchronize_norms_preserves_weights_and_outputs() -> None:
    torch.manual_seed(0)
    network = UNet(2, 1, 2, channels=(4, 8), norm="batch")
    image = torch.randn(2, 1, 16, 16)
    expected, names = network(image), list(network.state_dict())
    held = {id(parameter) for parameter in network.parameters()}
    changed = synchronize_norms(network)
    assert any(isinstance(module, SynchronizedBatchNorm) for module in changed.modules())
    assert list(changed.state_dict()) == names
    assert {id(parameter) for parameter in changed.parameters()} == held
    torch.testing.assert_close(changed(image), expected)  # one process: plain batch norm


def test_sync_batch_norm_of_pytorch_rejects_the_cpu(tmp_path: Path) -> None:
    """When this fails, `SynchronizedBatchNorm` is no longer needed."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="GPU"):
            torch.nn.SyncBatchNorm(3)(torch.zeros(2, 3, 4))
    finally:
        torch.distributed.destroy_process_group()
