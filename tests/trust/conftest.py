"""Bundles of an attacker: each tries to write a marker file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medunet.bundle import find_bundle


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Approvals of a test are valid in it alone."""
    monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """Copy a shipped bundle and change values by config and id."""

    def make(name: str = "foreign", *, bundle: str = "unet_2d", **configs: dict[str, Any]) -> Path:
        folder = tmp_path / name
        ignore = shutil.ignore_patterns("models", "eval", "prediction")
        shutil.copytree(find_bundle(bundle), folder, ignore=ignore)
        for config, changes in configs.items():
            change(folder / "configs" / f"{config}.json", changes)
        return folder

    return make


def change(path: Path, changes: dict[str, Any]) -> None:
    content = json.loads(path.read_text())
    for id_, value in changes.items():
        *parents, last = id_.split("/")
        place: Any = content
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        place[last] = value
    path.write_text(json.dumps(content))


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, marker: os.PathLike[str]) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)
