"""scripts/bench_inference_restore.py, tried in small."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("bench_inference_restore")
    monkeypatch.setattr(module, "CASES", {"small": ((24, 24, 16), (3.0, 3.0, 3.0))})
    monkeypatch.setattr(module.bench_nnunet, "available", lambda: False)
    return module


def rows(bench: Any, device: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    options = SimpleNamespace(
        device=torch.device(device), quick=False, repeats=2, enough=60.0, wants=lambda *keys: True
    )
    bench.restore(options, found.__setitem__)
    return found


def test_both_ways_give_the_same_labels(bench: Any) -> None:
    found = rows(bench, "cpu")
    assert len(found) == 2
    for row in found.values():
        assert row["device"] == "cpu"
        assert len(row["seconds"]) == 2
        assert row["voxels_unlike_torch"] <= 2


def test_the_logits_are_on_the_device_that_was_asked_for(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def note(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append(logits.device.type)
        return torch.zeros(1)

    monkeypatch.setattr(bench, "_restored", note)
    monkeypatch.setattr(bench, "_interpolated", note)
    waited: list[int] = []
    monkeypatch.setattr(bench, "synchronise", lambda: waited.append(1))
    found = rows(bench, "meta")
    assert set(seen) == {"meta"}
    assert len(waited) == len(seen)
    assert {row["device"] for row in found.values()} == {"meta"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_labels_restored_on_a_gpu_are_those_of_torch(bench: Any) -> None:
    found = rows(bench, "cuda")
    assert all(row["voxels_unlike_torch"] <= 2 for row in found.values())
