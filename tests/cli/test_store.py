"""`medunet store` shows what lies there and removes what nobody needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged
from typer.testing import CliRunner

from medunet.cli.app import app
from medunet.datasets import StoreDataset
from medunet.errors import ConfigError
from medunet.files import CAN_LOCK
from medunet.io import MedunetReader, write_volume


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["store", *arguments], env={"COLUMNS": "200"})


@pytest.mark.skipif(not CAN_LOCK, reason="the system knows no such locks")
def test_cases_are_listed_and_removed(tmp_path: Path) -> None:
    image = write_volume(np.zeros((8, 9, 10), np.float32), tmp_path / "data" / "a.nii.gz", affine=np.eye(4))
    store = tmp_path / "store"
    load = LoadImaged("image", reader=MedunetReader(channels=1), ensure_channel_first=True)
    dataset = StoreDataset([{"image": str(image)}], Compose([load]), store_dir=store)
    dataset.prepare()
    shown = run("--folder", str(store)).stdout
    assert dataset.folder.name in shown
    assert "1 cases" in shown
    assert "removed 0 cases" in run("--folder", str(store), "--prune", "--limit", "1B").stdout  # in use
    del dataset
    assert "removed 0 cases" in run("--folder", str(store), "--prune").stdout
    done = run("--folder", str(store), "--prune", "--limit", "1B").stdout
    assert "1 cases: the store is larger than its limit" in done
    assert "removed 1 cases" in done
    assert "0 cases" in run("--folder", str(store)).stdout


def test_a_limit_alone_removes_nothing(tmp_path: Path) -> None:
    assert isinstance(run("--folder", str(tmp_path), "--limit", "1GB").exception, ConfigError)
