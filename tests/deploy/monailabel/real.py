"""A real label server for tests, and a client."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from medunet.bundle import find_bundle
from medunet.datasets import write_phantom_dataset
from medunet.deploy.monailabel import LabelEnvironment
from medunet.deploy.monailabel.server import TOKEN_VARIABLE, usable_port
from medunet.runs import train_bundle

TOKEN = "a-long-token-of-a-ward"
SECONDS_TO_START = 180.0
SMALL: Mapping[str, Any] = {
    "network_def::channels": [8, 16, 32],
    "autocast_dtype": "float32",  # two environments may choose two formats, which round differently
    "steps_per_epoch": 10,
    "batch_size": 2,
    "val_interval": 2,
    "folds": 2,
}
SMALL_3D = {**SMALL, "patch_size": [32, 32, 32], "steps_per_epoch": 12}
SMALL_2D = {**SMALL, "patch_size": [64, 64], "epochs": 2}


class Rejected(Exception):
    """An answer of the server that is not 200."""


@dataclass(frozen=True)
class Client:
    """Requests to a label server, beyond those of Slicer's module."""

    url: str
    token: str | None = TOKEN

    def ask(self, method: str, path: str, *, content: Any = None, file: Path | None = None, **params: Any) -> bytes:
        """Return the answer to JSON content, or to a form with parameters and a file."""
        headers = {"Connection": "close"}  # the server may close an idle connection when it is used again
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        options: dict[str, Any] = {} if content is None else {"json": content}
        if content is None and method != "GET":
            options["fields"] = {"params": json.dumps(params)}
            if file is not None:
                options["fields"]["label" if "/label" in path else "file"] = (file.name, file.read_bytes())
        answer = urllib3.request(method, self.url + path, headers=headers, timeout=600, retries=False, **options)
        if answer.status != 200:
            raise Rejected(f"{answer.status}: {answer.data.decode(errors='replace')}")
        return answer.data

    def json(self, method: str, path: str, **options: Any) -> Any:
        """Return the answer as JSON."""
        return json.loads(self.ask(method, path, **options))

    def info(self) -> dict[str, Any]:
        return self.json("GET", "/info/")

    def next_sample(self, strategy: str) -> dict[str, Any]:
        return self.json("POST", f"/activelearning/{strategy}", content={})

    def save_label(self, name: str, label: Path, **params: Any) -> dict[str, Any]:
        return self.json("PUT", f"/datastore/label?image={name}&tag=final", file=label, **params)


def environment() -> LabelEnvironment:
    """Return MONAI Label's environment, or skip the test."""
    home = LabelEnvironment(os.environ.get("MEDUNET_LABEL_ENV"))
    if not home.is_ready:
        pytest.skip("MONAI Label is not set up: run bash scripts/test_label.sh")
    home.check()
    return home


def train_3d(folder: Path, *, epochs: int = 4) -> tuple[Path, Path]:
    """Write a CT-like data set and train on it shortly; return both folders."""
    data = write_phantom_dataset(folder / "ct", cases=6, size=[48, 48, 40], seed=7).parent
    train_bundle(find_bundle("unet_3d"), data, folder / "organs", changes={**SMALL_3D, "epochs": epochs}, device="cpu")
    return data, folder / "organs"


def train_2d(folder: Path) -> tuple[Path, Path]:
    """Write pictures of cells and train on them shortly; return both folders."""
    data = write_phantom_dataset(folder / "cells", kind="cells", cases=4, size=[96, 96], seed=8).parent
    train_bundle(find_bundle("unet_2d"), data, folder / "membranes", changes=SMALL_2D, device="cpu")
    return data, folder / "membranes"


@contextmanager
def serving(
    bundles: list[Path], studies: str, folder: Path, *, token: str | None = TOKEN, extra: tuple[str, ...] = ()
) -> Iterator[str]:
    """Run `medunet label serve` until the end of the block and return its address; `folder/server.log` is its log."""
    home = environment()
    port = usable_port()
    command = [sys.executable, "-m", "medunet", "label", "serve", *map(str, bundles), "--studies", studies]
    command += ["--port", str(port), "--work", str(folder / "work"), "--environment", str(home.folder), *extra]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3]), "CUDA_VISIBLE_DEVICES": ""}
    variables.pop(TOKEN_VARIABLE, None)
    if token is not None:
        variables[TOKEN_VARIABLE] = token
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
        try:
            _wait(process, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while "Uvicorn running on" not in (text := log.read_text(encoding="utf-8")):
        assert process.poll() is None, f"the server ended: {text[-3000:]}"
        assert time.monotonic() < end, f"the server does not start: {text[-3000:]}"
        time.sleep(0.3)
