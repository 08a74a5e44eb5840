"""Folders that test processes share."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills once per session, also if several test processes (pytest-xdist) need it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / "shared" / name, root / "shared" / f"{name}.done"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MONAI and ignite warn about themselves
                make(folder)
            done.touch()
    return folder
