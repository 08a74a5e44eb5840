"""A clock that runs backwards, a slow drive and little memory do not change the result."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL_2D, untrained_run

from medunet.bundle import find_bundle
from medunet.datasets import prune_store
from medunet.networks import UNet
from medunet.prediction import Predictor
from medunet.runs import train_bundle
from medunet.runtime import load_checkpoint
from medunet.training import LAST_NAME, PREVIOUS_NAME, CheckpointHandler

pytestmark = pytest.mark.filterwarnings("ignore")

YEAR = 365 * 86_400.0

SHORT: dict[str, Any] = {**SMALL_2D, "epochs": 3, "folds": 2, "num_workers": 0, "tracking_uri": ""}


def train(data: Path, output: Path, **changes: Any) -> dict[str, torch.Tensor]:
    train_bundle(find_bundle("unet_2d"), data, output, changes={**SHORT, **changes}, device="cpu", resume=True)
    weights: dict[str, torch.Tensor] = load_checkpoint(output / "models" / "model.pt")["model"]
    return weights


@pytest.mark.slow
def test_a_clock_that_runs_backwards_changes_no_weight(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(cells, tmp_path / "calm")
    clock = itertools.count(time.time(), -60.0)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    weights = train(cells, tmp_path / "run")
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    # the newest checkpoint is the one of that name, whatever the files' times say
    models, now = tmp_path / "run" / "models", next(clock)
    os.utime(models / LAST_NAME, (now - YEAR, now - YEAR))
    os.utime(models / PREVIOUS_NAME, (now + YEAR, now + YEAR))
    network = UNet(2, 1, 2, channels=(4, 8))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    handler = CheckpointHandler(str(models), network, optimizer=optimizer, resume=True)
    assert handler._load()["epoch"] == 3


def test_prepared_cases_with_a_time_in_the_future_are_kept(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path))
    train(cells, tmp_path / "run", epochs=1)
    monkeypatch.setattr(time, "time", lambda: 1e9)  # 2001
    assert prune_store(unused_days=1) == []


def test_a_slow_drive_changes_no_result(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sorted((volumes / "imagesTr").iterdir())[:2]
    run = untrained_run(tmp_path / "run")
    fast = list(Predictor(run, output_dir=tmp_path / "fast", device="cpu").predict(images))
    touched: list[str] = []
    for name in ("open", "read_bytes", "stat", "replace", "iterdir"):  # as on a network drive that is far away
        real = getattr(Path, name)

        def late(self: Path, *arguments: Any, _real: Any = real, **options: Any) -> Any:
            touched.append(str(self))
            time.sleep(0.01)
            return _real(self, *arguments, **options)

        monkeypatch.setattr(Path, name, late)
    slow = list(Predictor(run, output_dir=tmp_path / "slow", device="cpu").predict(images))
    assert len(touched) > 20
    for a, b in zip(slow, fast, strict=True):
        assert a.error is None and a.path is not None and b.path is not None
        assert a.path.read_bytes() == b.path.read_bytes()


SHORT_OF_MEMORY = """
import logging, resource, sys
import numpy as np, psutil, torch
from medunet.inferers import OverlapTileInferer
from medunet.networks import UNet

logging.basicConfig(level=logging.WARNING, format="%(message)s")
torch.set_num_threads(1)
torch.manual_seed(0)
network = UNet(2, 1, 2, channels=(16, 32), norm="batch").eval()
image = torch.randn(1, 1, 2048, 2048)
with torch.inference_mode():
    whole = OverlapTileInferer(None)(image, network)
    taken = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (taken + (500 << 20), resource.RLIM_INFINITY))
    tiled = OverlapTileInferer(None)(image, network)
print("largest difference", float((tiled - whole).abs().max()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_little_memory_makes_tiles_smaller_and_the_result_the_same() -> None:
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    environment = {**os.environ, "MEDUNET_KEEP_MEMORY": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory: continuing with smaller tiles" in done.stderr
    assert float(done.stdout.rpartition(" ")[2]) < 1e-4
