"""The environment of a run: versions, hardware, revision of the code, system metrics; no users and no host names."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

import medunet

from .server import now

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it logs its start and its end

# packages whose versions are parameters of a run and requirements of its model
MAIN_PACKAGES = ("torch", "monai", "pytorch-ignite", "mlflow", "numpy", "nibabel", "SimpleITK", "pydicom")

GIT_SECONDS = 5.0
INTERVAL_SECONDS = 10.0  # between two samples, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is set


def environment() -> dict[str, Any]:
    """Return the versions of the main packages, and the hardware."""
    device: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    device["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    if torch.cuda.is_available():
        device["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        device["cuda"] = torch.version.cuda
        device["cudnn"] = torch.backends.cudnn.version()
    return {
        "medunet": medunet.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": versions(),
        "device": device,
    }


def versions() -> dict[str, str]:
    """Return the versions of the main packages by name."""
    known: dict[str, str] = {}
    for name in MAIN_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return known


def packages() -> str:
    """Return all installed packages, one ``name==version`` per line."""
    installed = {str(dist.metadata["Name"]): dist.version for dist in importlib.metadata.distributions()}
    return "".join(f"{name}=={installed[name]}\n" for name in sorted(installed, key=str.lower))


def git_revision() -> dict[str, str]:
    """Return the commit of medunet's checkout, and whether it has changes; empty for an installed package."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(medunet.__file__).parent), *words]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True
            ).stdout.strip()
        return ""

    commit = git("rev-parse", "HEAD")
    changed = bool(commit and git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit, "changed": str(changed).lower()} if commit else {}


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor of processor, memory, disk, network and, with `nvidia-ml-py`, GPUs; samples go to a file.

    MLflow's own thread ends the first time that its server does not answer. This one needs no server. Each line of the
    file at `path` is one sample: points ``[key, value, milliseconds since 1970, number of the sample]``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("", sampling_interval=INTERVAL_SECONDS, tracking_uri="sqlite://")  # neither is used
        self.path = path
        self._logging_step = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0

    def monitor(self) -> None:
        """Sample until `finish`."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    break
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the means of the samples."""
        time, step = now(), self._logging_step
        points = [[f"{self._metrics_prefix}{key}", float(value), time, step] for key, value in metrics.items()]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(points) + "\n")
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()
