"""What a training ran with: versions, hardware, revision of the code; nothing about who and where."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

import medunet

MAIN_PACKAGES = ("torch", "monai", "pytorch-ignite", "mlflow", "numpy", "nibabel", "SimpleITK", "pydicom")
"""Their versions are parameters; all others stand in the artifact."""

GIT_SECONDS = 5.0


def environment() -> dict[str, Any]:
    """Versions of the main packages and what the machine has."""
    device: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    device["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    if torch.cuda.is_available():
        device["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        device["cuda"] = torch.version.cuda
        device["cudnn"] = torch.backends.cudnn.version()
    versions = {name: found for name in MAIN_PACKAGES if (found := _version(name)) is not None}
    return {
        "medunet": medunet.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": versions,
        "device": device,
    }


def packages() -> str:
    """All installed packages, one ``name==version`` a line."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return "".join(
        f"{name}=={version}\n" for name, version in sorted(found.items(), key=lambda item: str(item[0]).lower())
    )


def git_revision(folder: Path | None = None) -> dict[str, str]:
    """Commit of the checkout that medunet runs from, and whether it has changes; empty where it is installed.

    Args:
        folder: another folder.
    """
    folder = Path(medunet.__file__).parent if folder is None else folder
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    return {
        "commit": commit,
        "changed": str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower(),
    }


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
