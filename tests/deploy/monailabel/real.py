"""A real label server for tests, and what talks to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.deploy.monailabel import LabelEnvironment
from medunet.deploy.monailabel.server import TOKEN_VARIABLE, usable_port
from medunet.runs import train_bundle, train_folds

TOKEN = "a-long-token-of-a-ward"
SECONDS_TO_START = 180.0

LITTLE_3D: Mapping[str, Any] = {
    "network_def::channels": [8, 16, 32],
    "autocast_dtype": "float32",  # else two environments may find two formats the fastest, which round differently
    "patch_size": [32, 32, 32],
    "steps_per_epoch": 12,
    "batch_size": 2,
    "val_interval": 2,
    "folds": 2,
}
LITTLE_2D: Mapping[str, Any] = {
    "network_def::channels": [8, 16, 32],
    "autocast_dtype": "float32",  # else two environments may find two formats the fastest, which round differently
    "patch_size": [64, 64],
    "steps_per_epoch": 10,
    "batch_size": 2,
    "val_interval": 2,
    "folds": 2,
}


def environment() -> LabelEnvironment:
    """MONAI Label's, or the test is skipped."""
    found = LabelEnvironment(os.environ.get("MEDUNET_LABEL_ENV"))
    if not found.is_ready:
        pytest.skip("MONAI Label is not set up: run bash scripts/test_label.sh")
    found.check()
    return found


def train_3d(folder: Path, *, epochs: int = 4) -> tuple[Path, Path]:
    """A CT-like data set and a short training on it: ``(data, run)``."""
    data = write_phantom_dataset(folder / "ct", cases=6, size=[48, 48, 40], seed=7).parent
    train_bundle(find_bundle("unet_3d"), data, folder / "organs", changes={**LITTLE_3D, "epochs": epochs}, device="cpu")
    return data, folder / "organs"


def train_2d(folder: Path) -> tuple[Path, Path]:
    """Cells and a short training on them."""
    data = write_phantom_dataset(folder / "cells", kind="cells", cases=4, size=[96, 96], seed=8).parent
    train_bundle(find_bundle("unet_2d"), data, folder / "membranes", changes={**LITTLE_2D, "epochs": 2}, device="cpu")
    return data, folder / "membranes"


def train_ensemble(data: Path, folder: Path) -> Path:
    """Two folds of the cells, and the bundle of both."""
    train_folds(find_bundle("unet_2d"), data, folder, changes={**LITTLE_2D, "epochs": 2}, device="cpu")
    return folder


@contextmanager
def serving(
    bundles: list[Path], studies: str, folder: Path, *, token: str | None = TOKEN, extra: tuple[str, ...] = ()
) -> Iterator[str]:
    """`medunet label` until the end of the block; its address. What it said is in ``folder/server.log``."""
    home = environment()
    port = usable_port()
    command = [sys.executable, "-m", "medunet", "label", *map(str, bundles), "--studies", studies]
    command += ["--port", str(port), "--work", str(folder / "work"), "--environment", str(home.folder), *extra]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3]), "CUDA_VISIBLE_DEVICES": ""}
    variables.pop(TOKEN_VARIABLE, None)
    if token is not None:
        variables[TOKEN_VARIABLE] = token
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
        try:
            _wait(process, port, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text(encoding='utf-8')[-3000:]}")
        if "Uvicorn running on" in log.read_text(encoding="utf-8"):
            return
        time.sleep(0.3)
    pytest.fail(f"no server on {port}: {log.read_text(encoding='utf-8')[-3000:]}")
